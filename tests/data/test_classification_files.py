"""Single-label readers on small trees: order, labels, parts and refusals."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

from tenfold.data.catalog import DATA, load_classification
from tenfold.data.files.classification import NAMES, ClassificationFilesConfig
from tenfold.data.files.readers import imagenet
from tenfold.data.files.readers.imagenet import imagenet_ids
from tenfold.data.images import FileImages
from tenfold.types import Preprocessing

CLIP_LIKE = Preprocessing(image_size=4, resize="crop", interpolation="bicubic")
SPLITS = ("train", "val", "test")


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 5), shade).save(path, "PNG")  # by content, whatever the name says


def write_images(folder: Path, names: Iterable[str]) -> None:
    for shade, name in enumerate(names):
        write_image(folder / name, shade)


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def load(root: Path, name: str, splits=SPLITS, **changes):
    config = ClassificationFilesConfig(name=name, root=str(root), num_workers=2, progress=False, **changes)
    return load_classification(config, CLIP_LIKE, splits)


def listed(split) -> list[tuple[str, int]]:
    """Return folder and name, and label, of every image."""
    images = split.images
    names = ["/".join(Path(path).parts[-2:]) for path in images.paths]
    return list(zip(names, split.labels.tolist(), strict=True))


def fail_naming(path: Path, message: str, *arguments, **changes) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(*arguments, **changes)
    assert str(path) in str(caught.value)


# Folders ----------------------------------------------------------------------------------------------------------


def test_folders_with_parts(tmp_path):
    write_images(tmp_path / "train", ["b/1.png", "a/2.JPG", "a/10.png", "a/.hidden.png", "a/notes.txt"])
    write_images(tmp_path / "val", ["b/3.png"])
    write_images(tmp_path / "test", ["a/5.webp", "b/6.jpeg"])
    (tmp_path / "train/.cache").mkdir()
    data = load(tmp_path, "folders", domain_word="toy ", concept="toy", mirrorable=False)
    assert data.classes == ("a", "b")
    assert listed(data.train) == [("a/2.JPG", 0), ("a/10.png", 0), ("b/1.png", 1)]
    assert listed(data.val) == [("b/3.png", 1)]
    assert listed(data.test) == [("a/5.webp", 0), ("b/6.jpeg", 1)]
    assert (data.domain_word, data.concept, data.mirrorable, data.prepared_shots) == ("toy ", "toy", False, False)
    assert data.train.labels.dtype == np.int64
    assert data.test.images.read([0, 1]).shape == (2, 4, 4, 3)
    assert data.test.images.read_raw([0])[0].shape == (5, 6, 3)
    assert load(tmp_path, "folders", ["val"]).train is None


def test_folders_without_parts(tmp_path):
    write_images(tmp_path, ["dog/1.png", "cat/1.png"])
    data = load(tmp_path, "folders")
    assert (data.train, data.val) == (None, None)
    assert listed(data.test) == [("cat/1.png", 0), ("dog/1.png", 1)]


def test_folders_that_make_no_data_set(tmp_path):
    fail_naming(tmp_path, "holds no folder: expected train/, val/, test/", tmp_path, "folders")
    (tmp_path / "train").mkdir()
    fail_naming(tmp_path / "test", "is not a folder: expected the test part", tmp_path, "folders")
    write_images(tmp_path, ["train/a/1.png", "test/b/1.png"])
    fail_naming(tmp_path / "test", "holds the class 'b', which .*train does not have", tmp_path, "folders")
    (tmp_path / "train/b").mkdir()
    fail_naming(tmp_path / "train/b", "holds no image of class 'b'", tmp_path, "folders")
    fail_naming(
        tmp_path / "gone",
        "root must be the folder of the data set folders, got",
        tmp_path / "gone",
        "folders",
    )


# torchvision's layouts --------------------------------------------------------------------------------------------


@pytest.fixture
def dtd_root(tmp_path) -> Path:
    lists = {"train": ["woven/woven_2.jpg", "banded/banded_1.jpg"], "val": ["banded/banded_2.jpg", "woven/woven_9.jpg"]}
    lists["test"] = ["woven/woven_1.jpg", "banded/banded_3.jpg", "banded/banded_0.jpg"]
    for part, names in lists.items():
        text(tmp_path / f"dtd/dtd/labels/{part}1.txt", *names)
        text(tmp_path / f"dtd/dtd/labels/{part}2.txt", "banded/banded_7.jpg")
        write_images(tmp_path / "dtd/dtd/images", names)
    return tmp_path


def test_dtd(dtd_root):
    data = load(dtd_root, "dtd")
    assert data.classes == ("banded", "woven")
    assert listed(data.train) == [("woven/woven_2.jpg", 1), ("banded/banded_1.jpg", 0)]
    assert listed(data.test) == [("woven/woven_1.jpg", 1), ("banded/banded_3.jpg", 0), ("banded/banded_0.jpg", 0)]
    assert (data.domain_word, data.concept) == ("texture ", None)


def test_dtd_refusals(dtd_root):
    labels = dtd_root / "dtd/dtd/labels"
    text(labels / "val1.txt", "banded/banded_2.jpg")
    fail_naming(dtd_root, "parts of DTD must have the same classes, but val differs in woven", dtd_root, "dtd")
    text(labels / "val1.txt", "banded/banded_2.jpg", "woven")
    fail_naming(labels / "val1.txt", "line 2: expected DTD's list, lines 'class/file', got 'woven'", dtd_root, "dtd")
    (labels / "test1.txt").unlink()
    fail_naming(labels / "test1.txt", "is missing: expected DTD's list", dtd_root, "dtd", ["test"])


@pytest.fixture
def food_root(tmp_path) -> Path:
    meta = {
        "train": {"waffles": ["waffles/7"], "apple_pie": ["apple_pie/10", "apple_pie/9"]},
        "test": {"waffles": ["waffles/8"], "apple_pie": ["apple_pie/11"]},
    }
    for part, content in meta.items():
        text(tmp_path / f"food-101/meta/{part}.json", json.dumps(content))
        write_images(tmp_path / "food-101/images", [f"{name}.jpg" for names in content.values() for name in names])
    return tmp_path


def test_food101(food_root):
    data = load(food_root, "food101")
    assert (data.classes, data.val) == (("apple_pie", "waffles"), None)
    assert listed(data.train) == [("waffles/7.jpg", 1), ("apple_pie/10.jpg", 0), ("apple_pie/9.jpg", 0)]
    assert listed(data.test) == [("waffles/8.jpg", 1), ("apple_pie/11.jpg", 0)]
    assert (data.domain_word, data.concept, data.mirrorable) == ("food ", "food", True)
    assert load(food_root, "food101", concept="").concept is None


@pytest.mark.parametrize("content", ["[]", "{", '{"waffles": 3}'])
def test_food101_malformed(food_root, content):
    text(food_root / "food-101/meta/test.json", content)
    fail_naming(food_root, "the test part of Food-101 cannot be read .*torchvision's layout", food_root, "food101")


def test_an_image_that_is_not_there_or_damaged(food_root):
    path = food_root / "food-101/images/apple_pie/11.jpg"
    path.write_bytes(path.read_bytes()[:50])
    damaged = load(food_root, "food101")
    with pytest.raises(ValueError, match=r"cannot decode .*apple_pie/11\.jpg"):
        damaged.test.images.read([0, 1])
    with pytest.raises(ValueError, match=r"cannot decode .*apple_pie/11\.jpg"):
        damaged.test.images.read_raw([1])
    path.unlink()
    fail_naming(path, "1 of 2 listed images are not on disk, first: ", food_root, "food101", ["test"])


@pytest.fixture
def pets_root(tmp_path) -> Path:
    base = tmp_path / "oxford-iiit-pet"
    lines = {"trainval": ("Abyssinian_2 1 1 1", "american_bulldog_10 2 2 1", "Bengal_1 3 1 2")}
    lines["test"] = ("Bengal_3 3 1 2", "Abyssinian_1 1 1 1", "american_bulldog_4 2 2 1")
    for part, entries in lines.items():
        text(base / f"annotations/{part}.txt", *entries)
        write_images(base / "images", [f"{entry.split()[0]}.jpg" for entry in entries])
    return tmp_path


def test_pets(pets_root):
    data = load(pets_root, "pets")
    assert data.classes == ("Abyssinian", "American Bulldog", "Bengal")
    assert listed(data.test) == [
        ("images/Bengal_3.jpg", 2),
        ("images/Abyssinian_1.jpg", 0),
        ("images/american_bulldog_4.jpg", 1),
    ]
    assert (len(data.train), data.val, data.sort_case_insensitive) == (3, None, True)
    assert (data.domain_word, data.concept) == ("pet ", "breed")


def test_pets_malformed(pets_root):
    path = text(pets_root / "oxford-iiit-pet/annotations/test.txt", "Bengal_3 3 1 2", "Abyssinian_1 one 1 1")
    fail_naming(path, "line 2: expected the pets' list, .* got 'Abyssinian_1 one 1 1'", pets_root, "pets")


@pytest.fixture
def flowers_root(tmp_path, monkeypatch) -> Path:
    """Images 1 to 102 show flowers 102 to 1, images 103 to 106 flowers 7, 5, 1, 2."""
    base = tmp_path / "flowers-102"
    files = {name: (file, None) for name, (file, _) in torchvision.datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)  # the hashes are those of the real lists
    write_images(base / "jpg", [f"image_{number:05d}.jpg" for number in range(1, 107)])
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[*range(102, 0, -1), 7, 5, 1, 2]])})
    scipy.io.savemat(base / "setid.mat", {"trnid": [[*range(1, 103)]], "valid": [[105, 103]], "tstid": [[106, 104]]})
    return tmp_path


def test_flowers102(flowers_root):
    data = load(flowers_root, "flowers102")
    assert (len(data.classes), data.classes[0], data.classes[6]) == (102, "pink primrose", "moon orchid")
    assert listed(data.train)[:2] == [("jpg/image_00001.jpg", 101), ("jpg/image_00002.jpg", 100)]
    assert listed(data.val) == [("jpg/image_00105.jpg", 0), ("jpg/image_00103.jpg", 6)]
    assert listed(data.test) == [("jpg/image_00106.jpg", 1), ("jpg/image_00104.jpg", 4)]


def test_flowers102_refusals(flowers_root):
    labels = flowers_root / "flowers-102/imagelabels.mat"
    labels.write_bytes(b"no matrix")
    fail_naming(flowers_root, "part of Oxford flowers 102 cannot be read", flowers_root, "flowers102")
    labels.unlink()
    fail_naming(labels, "is missing: expected a list of Oxford flowers 102", flowers_root, "flowers102")


@pytest.fixture
def aircraft_root(tmp_path) -> Path:
    base = tmp_path / "fgvc-aircraft-2013b/data"
    text(base / "variants.txt", "737-200", "F-16A/B", "737-300")
    text(base / "families.txt", "Boeing 737", "F-16")
    content = {"trainval": [("01", 0), ("02", 1), ("04", 2)], "test": [("05", 2), ("03", 1)]}
    for part, pairs in content.items():
        text(base / f"images_variant_{part}.txt", *(f"{n} {('737-200', 'F-16A/B', '737-300')[v]}" for n, v in pairs))
        families = ("Boeing 737", "F-16", "Boeing 737")
        text(base / f"images_family_{part}.txt", *(f"{n} {families[v]}" for n, v in pairs))
        write_images(base / "images", [f"{n}.jpg" for n, _ in pairs])
    return tmp_path


def test_fgvc_aircraft(aircraft_root):
    data = load(aircraft_root, "fgvc_aircraft")
    assert data.classes == ("737-200", "F-16A/B", "737-300")  # in the order of the file
    assert listed(data.train) == [("images/01.jpg", 0), ("images/02.jpg", 1), ("images/04.jpg", 2)]
    assert (listed(data.test), data.val) == ([("images/05.jpg", 2), ("images/03.jpg", 1)], None)
    families = load(aircraft_root, "fgvc_aircraft", ["test"], level="family")
    assert families.classes == ("Boeing 737", "F-16")
    assert listed(families.test) == [("images/05.jpg", 0), ("images/03.jpg", 1)]
    assert families.fingerprint != load(aircraft_root, "fgvc_aircraft", ["test"]).fingerprint


def test_fgvc_aircraft_refusals(aircraft_root):
    base = aircraft_root / "fgvc-aircraft-2013b/data"
    text(base / "images_variant_test.txt", "05 Concorde")
    fail_naming(
        aircraft_root, "test part of FGVC aircraft cannot be read .KeyError: 'Concorde'", aircraft_root, "fgvc_aircraft"
    )
    path = text(base / "images_variant_test.txt", "05")
    fail_naming(path, "line 1: expected the aircraft's list, lines 'image variant'", aircraft_root, "fgvc_aircraft")
    (base / "variants.txt").unlink()
    fail_naming(base / "variants.txt", "is missing: expected the aircraft's classes", aircraft_root, "fgvc_aircraft")


@pytest.fixture
def cars_root(tmp_path) -> Path:
    base = tmp_path / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    scipy.io.savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    lists = {"cars_train": ([2, 1, 1], "devkit/cars_train_annos"), "cars_test": ([1, 2], "cars_test_annos_withlabels")}
    for folder, (labels, file) in lists.items():
        annotations = np.zeros(len(labels), dtype=[("fname", object), ("class", object)])
        for row, label in enumerate(labels):
            annotations[row] = (f"{row + 1:05d}.jpg", label)
            write_image(base / folder / f"{row + 1:05d}.jpg")
        scipy.io.savemat(base / f"{file}.mat", {"annotations": annotations})
    return tmp_path


def test_cars(cars_root):
    data = load(cars_root, "cars")
    assert data.classes == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    assert listed(data.train) == [("cars_train/00001.jpg", 1), ("cars_train/00002.jpg", 0), ("cars_train/00003.jpg", 0)]
    assert (listed(data.test), data.val) == ([("cars_test/00001.jpg", 0), ("cars_test/00002.jpg", 1)], None)
    # The same file name in both folders: a split file has to say which.
    divided = text(
        cars_root / "split.csv",
        "split,filename",
        "train,cars_train/00001.jpg",
        "train,cars_test/00001.jpg",
        "test,00003.jpg",
    )
    assert listed(load(cars_root, "cars", split_file="split.csv").test) == [("cars_train/00003.jpg", 0)]
    text(divided, "split,filename", "train,00001.jpg")
    fail_naming(
        divided,
        r"line 2: 00001\.jpg may be .* or .*; give more of the path",
        cars_root,
        "cars",
        split_file="split.csv",
    )


def test_cars_refusals(cars_root):
    meta = cars_root / "stanford_cars/devkit/cars_meta.mat"
    scipy.io.savemat(meta, {"other": [1]})
    fail_naming(cars_root, "part of Stanford cars cannot be read .KeyError: 'class_names'", cars_root, "cars")
    meta.unlink()
    fail_naming(meta, "is missing: expected a list of Stanford cars", cars_root, "cars")


@pytest.fixture
def places_root(tmp_path, monkeypatch) -> Path:
    places = torchvision.datasets.Places365
    monkeypatch.setattr(places, "_CATEGORIES_META", (places._CATEGORIES_META[0], None))
    monkeypatch.setattr(places, "_FILE_LIST_META", {"val": ("places365_val.txt", None)})
    # The numbers are what counts, not the order of the names.
    text(tmp_path / "categories_places365.txt", "/a/airfield 2", "/b/booth/indoor 0", "/z/zen_garden 1")
    text(
        tmp_path / "places365_val.txt",
        "Places365_val_00000001.jpg 1",
        "Places365_val_00000002.jpg 0",
        "Places365_val_00000003.jpg 2",
    )
    write_images(tmp_path / "val_256", [f"Places365_val_0000000{number}.jpg" for number in (1, 2, 3)])
    return tmp_path


def test_places365(places_root):
    data = load(places_root, "places365")
    assert data.classes == ("/b/booth/indoor", "/z/zen_garden", "/a/airfield")
    assert data.prompt_names == ("booth-indoor", "zen_garden", "airfield")
    assert listed(data.test)[0] == ("val_256/Places365_val_00000001.jpg", 1)
    assert (data.train, data.val, data.concept) == (None, None, "place")


def test_places365_refusals(places_root):
    path = text(places_root / "categories_places365.txt", "/a/airfield 0", "/b/booth/indoor 2")
    fail_naming(path, "must be numbered 0, 1, 2", places_root, "places365")
    text(path, "/a/airfield")
    fail_naming(path, "line 1: expected the categories of Places365", places_root, "places365")


EUROSAT = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial")
EUROSAT += ("Pasture", "PermanentCrop", "Residential", "River", "SeaLake")


@pytest.fixture
def eurosat_root(tmp_path) -> Path:
    for name in EUROSAT:
        write_images(tmp_path / "eurosat/2750" / name, [f"{name}_{number}.jpg" for number in (1, 2, 10)])
    return tmp_path


def test_eurosat_whole(eurosat_root):
    data = load(eurosat_root, "eurosat")
    assert (data.classes, data.train, data.val, len(data.test)) == (EUROSAT, None, None, 30)
    assert np.bincount(data.test.labels).tolist() == [3] * 10
    assert data.prompt_names[2] == "brushland or shrubland"
    assert (data.domain_word, data.concept) == ("satellite ", "land use")


def eurosat_split(label_of=EUROSAT.index, **changes) -> str:
    content = {
        part: [[f"{name}/{name}_{number}.jpg", label_of(name), name] for name in EUROSAT]
        for part, number in (("train", 10), ("val", 2), ("test", 1))
    }
    return json.dumps(content | changes)


def test_eurosat_divided_by_json(eurosat_root):
    # Another numbering of the classes: ours stands.
    text(eurosat_root / "split_zhou_EuroSAT.json", eurosat_split(lambda name: 9 - EUROSAT.index(name)))
    data = load(eurosat_root, "eurosat", split_file="split_zhou_EuroSAT.json")
    assert [len(split) for split in data.splits().values()] == [10, 10, 10]
    assert listed(data.train)[2] == ("HerbaceousVegetation/HerbaceousVegetation_10.jpg", 2)
    assert listed(data.val)[0] == ("AnnualCrop/AnnualCrop_2.jpg", 0)
    assert data.fingerprint != load(eurosat_root, "eurosat").fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: expected JSON"),
        ("[]", "expected JSON {"),
        ('{"dev": []}', "expected JSON {"),
        ('{"train": []}', "lists no image"),
        (eurosat_split(val=3), r"entry 0 of val must be \[path, label, name\], got 3"),
        (eurosat_split(val=[["Forest/Forest_2.jpg", 1]]), "entry 0 of val must be"),
        (eurosat_split(val=[["Forest/Forest_2.jpg", "1", "Forest"]]), "entry 0 of val must be"),
        (eurosat_split(val=[["Forest/Forest_3.jpg", 1, "Forest"]]), "entry 0 of val: Forest/Forest_3.jpg is not among"),
        (
            eurosat_split(val=[["Forest/Forest_10.jpg", 1, "Forest"]]),
            "entry 0 of val: Forest/Forest_10.jpg is listed twice",
        ),
        (
            eurosat_split(val=[["Forest/Forest_2.jpg", 2, "River"]]),
            "label 2 was 'HerbaceousVegetation' before, but Forest",
        ),
    ],
)
def test_eurosat_json_refusals(eurosat_root, content, message):
    path = text(eurosat_root / "split.json", content)
    fail_naming(path, message, eurosat_root, "eurosat", split_file="split.json")


@pytest.fixture
def sun_root(tmp_path) -> Path:
    text(tmp_path / "SUN397/ClassName.txt", "/a/abbey", "/b/booth/indoor", "/z/zen_garden")
    write_images(
        tmp_path / "SUN397",
        ["b/booth/indoor/sun_b2.jpg", "a/abbey/sun_a9.jpg", "z/zen_garden/sun_z.jpg", "a/abbey/sun_a1.jpg"],
    )
    return tmp_path


def test_sun397(sun_root):
    data = load(sun_root, "sun397")
    assert data.classes == ("abbey", "booth/indoor", "zen_garden")
    assert listed(data.test) == [
        ("abbey/sun_a1.jpg", 0),
        ("abbey/sun_a9.jpg", 0),
        ("indoor/sun_b2.jpg", 1),
        ("zen_garden/sun_z.jpg", 2),
    ]
    assert data.domain_word == "scene "


CSV = (
    "split,filename",
    "train,a/abbey/sun_a9.jpg",
    "train,b/booth/indoor/sun_b2.jpg",
    "train,z/zen_garden/sun_z.jpg",
    "test,a/abbey/sun_a1.jpg",
)


def test_sun397_divided_by_csv(sun_root):
    path = text(sun_root / "elsewhere/split_coop.csv", *CSV)
    for written in ("elsewhere/split_coop.csv", str(path)):  # from the root, or absolute
        data = load(sun_root, "sun397", split_file=written)
        assert listed(data.train) == [("abbey/sun_a9.jpg", 0), ("indoor/sun_b2.jpg", 1), ("zen_garden/sun_z.jpg", 2)]
        assert (listed(data.test), data.val) == ([("abbey/sun_a1.jpg", 0)], None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("filename,split", *CSV[1:]),
            "line 1: expected a CSV with the header 'split,filename', .* got 'filename,split'",
        ),
        ((*CSV, "dev,a/abbey/sun_a1.jpg"), "line 6: expected a CSV"),
        ((*CSV, "val"), "line 6: expected a CSV"),
        ((*CSV, "val,"), "line 6: expected a CSV"),
        ((*CSV, "val,a/abbey/sun_a1.jpg"), "line 6: a/abbey/sun_a1.jpg is listed twice"),
        ((*CSV, "val,a/abbey/sun_a3.jpg"), "line 6: a/abbey/sun_a3.jpg is not among the data set's images"),
        (CSV[:1], "lists no image"),
        ((), "line 1: expected a CSV"),
    ],
)
def test_csv_refusals(sun_root, lines, message):
    path = text(sun_root / "split.csv", *lines)
    fail_naming(path, message, sun_root, "sun397", split_file="split.csv")


def test_a_split_file_that_is_missing_or_leaves_the_test_to_the_official_part(sun_root):
    fail_naming(sun_root / "gone.csv", "is missing", sun_root, "sun397", split_file="gone.csv")
    text(sun_root / "train.csv", *CSV[:4])
    # All images are the official test part here, so the training images would be tested on.
    with pytest.raises(ValueError, match=r"sun397: .*sun_a9\.jpg is in the train part and in the test part"):
        load(sun_root, "sun397", split_file="train.csv")


def test_sun397_refusals(sun_root):
    path = text(sun_root / "SUN397/ClassName.txt", "/a/abbey", "zen_garden")
    fail_naming(path, "line 2: expected SUN397's classes", sun_root, "sun397")
    text(path, "/a/abbey")
    fail_naming(sun_root, "SUN397 cannot be read .KeyError: ", sun_root, "sun397")


def test_caltech101(tmp_path):
    folder = tmp_path / "caltech101/101_ObjectCategories"
    fail_naming(folder, "is not a folder: expected Caltech-101's images", tmp_path, "caltech101")
    assert not folder.parent.exists()
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "accordion"):
        write_images(folder / name, ["image_0002.jpg", "image_0001.jpg"])
    data = load(tmp_path, "caltech101")
    assert data.classes == ("Faces", "Leopards", "accordion")
    assert listed(data.test)[:3] == [
        ("Faces/image_0001.jpg", 0),
        ("Faces/image_0002.jpg", 0),
        ("Leopards/image_0001.jpg", 1),
    ]


# Readers of our own -----------------------------------------------------------------------------------------------


@pytest.fixture
def birds_root(tmp_path) -> Path:
    base = tmp_path / "CUB_200_2011"
    text(base / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    names = [
        "002.Laysan_Albatross/c.jpg",
        "001.Black_footed_Albatross/b.jpg",
        "001.Black_footed_Albatross/a.jpg",
        "002.Laysan_Albatross/d.jpg",
    ]
    text(base / "images.txt", *(f"{number} {name}" for number, name in enumerate(names, start=1)))
    text(base / "image_class_labels.txt", "1 2", "2 1", "3 1", "4 2")
    text(base / "train_test_split.txt", "1 0", "2 0", "3 1", "4 1")
    write_images(base / "images", names)
    return tmp_path


def test_cub200(birds_root):
    data = load(birds_root, "cub200")
    assert data.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert data.prompt_names == ("Black footed Albatross", "Laysan Albatross")
    assert listed(data.test) == [("001.Black_footed_Albatross/b.jpg", 0), ("002.Laysan_Albatross/c.jpg", 1)]
    assert listed(data.train) == [("001.Black_footed_Albatross/a.jpg", 0), ("002.Laysan_Albatross/d.jpg", 1)]
    assert (data.val, data.concept) == (None, "bird")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("classes.txt", ("1 a", "3 b"), "line 2: expected lines 'class_id name'"),
        ("image_class_labels.txt", ("1 2", "2 1", "3 1"), "a class_id for each of 4 images of images.txt, got 3"),
        ("image_class_labels.txt", ("1 2", "2 1", "3 3", "4 1"), r"line 3: class_id must be in 1\.\.2, got '3'"),
        ("train_test_split.txt", ("1 0", "2 yes", "3 1", "4 1"), r"line 2: is_training must be in 0\.\.1, got 'yes'"),
        ("images.txt", ("1",), "line 1: expected lines 'image_id path'"),
    ],
)
def test_cub200_refusals(birds_root, name, lines, message):
    path = text(birds_root / "CUB_200_2011" / name, *lines)
    fail_naming(path, message, birds_root, "cub200")


@pytest.fixture
def stl_root(tmp_path) -> Path:
    folder = tmp_path / "stl10_binary"
    text(folder / "class_names.txt", "airplane", "bird")
    for part, labels in (("train", [1, 2]), ("test", [2, 2, 1])):
        pixels = np.zeros((len(labels), 3, 96, 96), dtype=np.uint8)
        pixels[:, 0, 5, 7] = 200  # red, column 5, row 7: stored column by column
        pixels.tofile(folder / f"{part}_X.bin")
        np.array(labels, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    return tmp_path


def test_stl10(stl_root):
    data = load(stl_root, "stl10")
    assert (data.classes, data.val) == (("airplane", "bird"), None)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [1, 1, 0])
    raw = data.test.images.read_raw([2])[0]
    assert (raw.shape, raw[7, 5].tolist(), int(raw.sum())) == ((96, 96, 3), [200, 0, 0], 200)
    assert data.test.images.read([0, 1]).shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match="stl10 stores its images in one file, so split_file must be null"):
        load(stl_root, "stl10", split_file="split.csv")


def test_stl10_refusals(stl_root):
    path = stl_root / "stl10_binary/test_y.bin"
    path.write_bytes(b"\x02\x03\x01")
    fail_naming(path, r"labels must be in 1\.\.2, got 1\.\.3", stl_root, "stl10")
    path.write_bytes(b"\x02\x01")
    fail_naming(path.with_name("test_X.bin"), "expected 27648 bytes for each of the 2 labels", stl_root, "stl10")
    path.unlink()
    fail_naming(path, "is missing: expected STL-10's labels", stl_root, "stl10")


@pytest.fixture(scope="module")
def imagenet_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    for wordnet_id in imagenet_ids():
        (root / "val" / wordnet_id).mkdir(parents=True)
        (root / "val" / wordnet_id / f"ILSVRC2012_val_{wordnet_id}.JPEG").write_bytes(b"not decoded")
    for wordnet_id in imagenet_ids()[:2]:
        write_images(root / "train" / wordnet_id, [f"{wordnet_id}_{number}.JPEG" for number in (10, 9)])
    return root


def test_imagenet(imagenet_root):
    data = load(imagenet_root, "imagenet", ["test"])
    assert (len(data.classes), data.classes[0], data.classes[999]) == (1000, "tench", "toilet paper")
    assert len(set(data.classes)) == 1000
    assert data.test.labels.tolist() == list(range(1000))
    assert listed(data.test)[1] == ("n01443537/ILSVRC2012_val_n01443537.JPEG", 1)
    assert (data.train, data.val, data.domain_word) == (None, None, "")


def test_imagenet_lacks_a_class(imagenet_root):
    path = imagenet_root / "train"
    fail_naming(path, "lacks 998 class folders, first: n01484850", imagenet_root, "imagenet")
    fail_naming(imagenet_root / "train/val", "is not a folder: expected ImageNet's", path, "imagenet", ["test"])


def test_imagenet_lists(imagenet_root):
    train = ["train/n01443537/n01443537_9.JPEG, 1", "train/n01440764/n01440764_10.JPEG,0"]
    lists = imagenet_root / "lists"
    text(lists / "train.txt", *train)
    text(lists / "test.txt", "val/n01443537/ILSVRC2012_val_n01443537.JPEG,1")
    with pytest.raises(ValueError, match="998 of 1000 classes have no training image, first: 'great white shark'"):
        load(imagenet_root, "imagenet", split_file="lists")
    data = load(imagenet_root, "imagenet", ["test"], split_file="lists")
    assert listed(data.test) == [("n01443537/ILSVRC2012_val_n01443537.JPEG", 1)]
    # One file is the training part; the official test part stays.
    assert len(load(imagenet_root, "imagenet", ["test"], split_file="lists/train.txt").test) == 1000
    (imagenet_root / "empty").mkdir(exist_ok=True)
    fail_naming(
        imagenet_root / "empty",
        r"holds no train\.txt, val\.txt or test\.txt",
        imagenet_root,
        "imagenet",
        split_file="empty",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val/a.JPEG", "line 2: expected 'path,label' with a label in 0..999, got 'val/a.JPEG'"),
        (",3", "line 2: expected 'path,label'"),
        ("val/a.JPEG,-1", "line 2: expected 'path,label'"),
        ("val/a.JPEG,1000", "line 2: expected 'path,label'"),
        ("val/b.JPEG,2", "line 2: val/b.JPEG is listed twice"),
    ],
)
def test_imagenet_list_refusals(imagenet_root, tmp_path, line, message):
    path = text(tmp_path / "test.txt", "val/b.JPEG,1", line)
    fail_naming(path, message, imagenet_root, "imagenet", ["test"], split_file=str(tmp_path))


def test_imagenet_100(imagenet_root, tmp_path):
    path = text(tmp_path / "mine.txt", "n01443537", "n01440764 big fish")  # in the order of the list
    data = load(imagenet_root, "imagenet_100", classes_file=str(path))
    assert data.classes == ("goldfish", "big fish")
    assert listed(data.train) == [
        ("n01443537/n01443537_9.JPEG", 0),
        ("n01443537/n01443537_10.JPEG", 0),
        ("n01440764/n01440764_9.JPEG", 1),
        ("n01440764/n01440764_10.JPEG", 1),
    ]
    assert data.test.labels.tolist() == [0, 1]
    for lines, message in (
        (("n1",), "line 1: 'n1' is not a class of ImageNet"),
        (("n01443537", "n01443537"), "names the class 'n01443537' twice"),
        ((), "is empty"),
    ):
        text(path, *lines)
        fail_naming(path, message, imagenet_root, "imagenet_100", classes_file=str(path))
    fail_naming(imagenet_root / "classes.txt", "is missing", imagenet_root, "imagenet_100")


def test_imagenetv2(tmp_path, monkeypatch):
    names = tuple("abcdefghijkl")
    monkeypatch.setattr(imagenet, "imagenet_names", lambda: names)
    folder = tmp_path / "imagenetv2-matched-frequency-format-val"
    write_images(folder, [f"{label}/a.jpeg" for label in range(12)])
    data = load(tmp_path, "imagenetv2")
    assert (data.classes, data.train, data.val) == (names, None, None)
    assert listed(data.test) == [(f"{label}/a.jpeg", label) for label in range(12)]  # "10" is not the third
    (folder / "12").mkdir()
    fail_naming(folder, "holds 1 folders that are not classes, first: 12", tmp_path, "imagenetv2")


# Few shots, cache, fingerprint, settings ----------------------------------------------------------------------------


def test_prepared_shots_become_the_training_part(sun_root):
    shots = sun_root / "real_train_fewshot/seed0"
    write_images(shots, ["abbey/10.png", "abbey/9.png", "abbey/prompts.json", "booth/indoor/1.jpg", "zen_garden/2.jpg"])
    data = load(sun_root, "sun397", few_shot_folder="real_train_fewshot/seed0")
    assert listed(data.train) == [("abbey/9.png", 0), ("abbey/10.png", 0), ("indoor/1.jpg", 1), ("zen_garden/2.jpg", 2)]
    assert data.prepared_shots
    assert not load(sun_root, "sun397", ["test"], few_shot_folder="real_train_fewshot/seed0").prepared_shots
    (shots / "zen_garden/2.jpg").unlink()
    fail_naming(
        shots, "no shots of 1 of 3 classes, first: 'zen_garden'", sun_root, "sun397", few_shot_folder=str(shots)
    )
    write_images(shots, ["zen_garden/2.jpg", "zoo/1.jpg"])
    fail_naming(shots, "holds 'zoo', which is not a class", sun_root, "sun397", few_shot_folder=str(shots))
    fail_naming(
        sun_root / "gone", "is not a folder: expected prepared shots", sun_root, "sun397", few_shot_folder="gone"
    )


def test_a_damaged_shot_is_named(food_root):
    shots = food_root / "real_train_fewshot/seed1"
    write_images(shots, ["apple_pie/1.jpg", "waffles/1.jpg"])
    (shots / "waffles/1.jpg").write_bytes(b"not an image")
    data = load(food_root, "food101", few_shot_folder="real_train_fewshot/seed1")
    for read in (data.train.images.read, data.train.images.read_raw):
        with pytest.raises(ValueError, match=r"seed1/waffles/1\.jpg: the image must be JPEG, PNG or WEBP"):
            read([0, 1])


def test_cache_holds_validation_and_test_images(dtd_root, tmp_path, monkeypatch):
    expected = load(dtd_root, "dtd")
    load(dtd_root, "dtd", cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("images-4-*.npy"))) == 2
    monkeypatch.setattr(FileImages, "read_into", lambda *_: pytest.fail("decoded again"))
    data = load(dtd_root, "dtd", cache=str(tmp_path / "cache"))
    monkeypatch.undo()
    assert (data.train.images.in_memory, data.test.images.in_memory) == (False, True)
    assert data.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(data.test.images.read([2, 0]), expected.test.images.read([2, 0]))
    assert data.test.images.read_raw([2])[0].shape == (5, 6, 3)


def test_fingerprint_follows_the_content_not_the_place(dtd_root, tmp_path):
    first = load(dtd_root, "dtd").fingerprint
    moved = dtd_root.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert load(moved, "dtd").fingerprint == first
    write_image(moved / "dtd/dtd/images/woven/woven_1.jpg", 3)
    Image.new("RGB", (7, 7)).save(moved / "dtd/dtd/images/woven/woven_1.jpg", "PNG")
    assert load(moved, "dtd").fingerprint != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist"}, "name must be one of caltech101, "),
        ({"root": ""}, "root must be the data set's folder"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"level": "maker"}, "level must be variant or family, got 'maker'"),
        ({"level": "family"}, "level must be variant for dtd, got 'family'"),
        ({"domain_word": "texture"}, "domain_word must end with a space"),
        ({"split_file": "split.pkl"}, "split_file must be .csv, .json, .txt or a folder of lists, got 'split.pkl'"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassificationFilesConfig(**({"name": "dtd", "root": "/data"} | changes))


def test_every_reader_is_in_the_catalogue():
    assert {name for name, entry in DATA.items() if entry.config_class() is ClassificationFilesConfig} == set(NAMES)
