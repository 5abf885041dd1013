"""CLIP: accuracy of the shipped model, equality with open_clip, caching of texts, refusals."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tenfold.data.embedded.handwriting.build import load
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.splits import Glyphs
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.models.clip import TINY_FOLDER, Clip, ClipConfig, load_clip
from tenfold.models.text_cache import TextCache

TEXTS = ["a photo of a three", "A photo of a seven, which has waffle.", "x"]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2},
    "text_cfg": {"width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def tiny() -> Clip:
    return load_clip(ClipConfig())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP with random weights, in open_clip's folder format."""
    return write_folder(tmp_path / "random_clip")


def write_folder(folder: Path, preprocess: dict | None = None, **more: object) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**MODEL, **more).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], **(preprocess or {})}
    config = {"model_cfg": {**MODEL, **more}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def make_images(clip: Clip, num: int = 4) -> torch.Tensor:
    side = clip.preprocessing.image_size
    return torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def encoded(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects every text encoded from now on."""
    seen: list[str] = []
    tokenize = clip.tokenize
    monkeypatch.setattr(clip, "tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    return seen


# -- the shipped model


@pytest.mark.parametrize("prompt", ["a photo of a {}", "A photo of a {}.", "a digit photo of a {}"])
def test_the_shipped_clip_reads_fonts_that_it_has_never_seen(tiny, prompt):
    glyphs = load(Glyphs, HandwritingConfig(), "test")
    embeddings = tiny.embed_images(torch.from_numpy(np.array(glyphs.images[:500])))
    nearest = (embeddings @ tiny.embed_texts([prompt.format(word) for word in DIGIT_WORDS]).T).argmax(dim=1)
    assert (nearest.numpy() == glyphs.labels[:500]).mean() >= 0.95


def test_the_shipped_folder_is_small_and_plain_open_clip_reads_it_from_anywhere(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) < 10_000_000
    network = open_clip.create_model(f"local-dir:{TINY_FOLDER}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{TINY_FOLDER}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(tiny.embed_texts(TEXTS), network.encode_text(tokens, normalize=True))
        pixels = tiny.normalise(make_images(tiny))
        torch.testing.assert_close(tiny.embed_images(make_images(tiny)), network.encode_image(pixels, normalize=True))


def test_any_string_has_tokens_of_its_own(tiny):
    strings = ["", "jmhj, !J#m.", "中文", "é" * 400, "  ", "waffle iron"]
    tokens = tiny.tokenize(strings)
    assert tokens.shape == (len(strings), 40)
    end = tokens.max()
    assert (tokens == end).sum(dim=1).tolist() == [1] * len(strings)  # a truncated text keeps its end token
    assert tiny.embed_texts(strings).isfinite().all()


# -- the same numbers as open_clip


@pytest.mark.parametrize("more", [{}, {"quick_gelu": True}, {"init_logit_bias": 0.5}])
def test_a_folder_gives_what_open_clip_gives(tmp_path, more):
    folder = write_folder(tmp_path / "clip", **more)
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    network = open_clip.create_model(f"local-dir:{folder}").eval()
    assert clip.preprocessing.image_size == 16
    assert clip.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (clip.preprocessing.resize, clip.preprocessing.interpolation) == ("crop", "bicubic")
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")  # open_clip's own preprocessing
    images = make_images(clip)
    pixels = torch.stack([transform(Image.fromarray(image.numpy())) for image in images])
    torch.testing.assert_close(clip.normalise(images), pixels)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        torch.testing.assert_close(clip.text_features(clip.tokenize(TEXTS)), network.encode_text(tokens))
        torch.testing.assert_close(clip.image_features(pixels), network.encode_image(pixels))
        torch.testing.assert_close(clip.log_scale, network.logit_scale)


def test_rows_have_length_one_in_float32_even_under_autocast(folder):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    plain = clip.embed_texts(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        texts, images = clip.embed_texts(TEXTS), clip.embed_images(make_images(clip))
    for rows in (texts, images):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    assert not torch.equal(texts, plain)  # computed anew, not cached from another precision
    torch.testing.assert_close(texts, plain, atol=0.05, rtol=0)
    assert clip.embed_texts([]).shape == (0, clip.embedding_dim)


def test_gradients_reach_both_towers_where_they_are_wanted(folder):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    assert not clip.training
    assert not any(weight.requires_grad for weight in clip.parameters())
    clip.requires_grad_(True)
    images = clip.image_features(clip.normalise(make_images(clip, 3)))
    (images * clip.text_features(clip.tokenize(TEXTS))).sum().backward()
    assert clip.network.visual.conv1.weight.grad.abs().sum() > 0
    assert clip.network.token_embedding.weight.grad.abs().sum() > 0


# -- architectures and checkpoints


def test_a_checkpoint_file_of_an_architecture_of_open_clip(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-test-arch", MODEL)
    first = load_clip(ClipConfig(name="small-test-arch", pretrained="random"))
    save_file(first.network.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": first.network.state_dict()}, tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        again = load_clip(ClipConfig(name="small-test-arch", pretrained=str(tmp_path / name)))
        assert torch.equal(again.embed_texts(TEXTS), first.embed_texts(TEXTS))
        assert again.fingerprint == first.fingerprint
    other = load_clip(ClipConfig(name="small-test-arch", pretrained="random"))
    assert other.fingerprint != first.fingerprint  # other weights


def test_loading_twice_gives_the_same_model(folder):
    first, second = (load_clip(ClipConfig(name=f"local-dir:{folder}")) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.embed_texts(TEXTS), second.embed_texts(TEXTS))
    assert torch.equal(first.embed_images(make_images(first)), second.embed_images(make_images(second)))


def test_the_activation_belongs_to_the_fingerprint(tmp_path):
    prints = {
        load_clip(ClipConfig(name=f"local-dir:{write_folder(tmp_path / name, **more)}")).fingerprint
        for name, more in (("gelu", {}), ("quick", {"quick_gelu": True}))
    }
    assert len(prints) == 2


def test_weights_that_were_trained_with_quick_gelu_get_it(folder, monkeypatch):
    asked: dict = {}

    def create(name, **options):
        asked.update(options)
        raise RuntimeError("out of reach")

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        asked.clear()
        with pytest.raises(ValueError, match=r"cannot load ViT-B-32 with .*downloadable; offline"):
            load_clip(ClipConfig(name="ViT-B/32", pretrained=tag))
        assert asked.get("force_quick_gelu", False) is quick
        assert asked["weights_only"]
        assert asked["require_pretrained"]


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": ""}, "name must be tiny, an architecture"),
        ({"name": "local-dir:"}, "name must be tiny, an architecture"),
        ({"name": "tiny", "pretrained": "openai"}, "pretrained must be null for 'tiny'"),
        ({"name": "hf-hub:some/model", "pretrained": "openai"}, "pretrained must be null"),
        ({"name": "ViT-B-16"}, "pretrained must be a tag of open_clip"),
    ],
)
def test_settings_that_do_not_fit_together(settings, said):
    with pytest.raises(ValueError, match=said):
        ClipConfig(**settings)


def test_an_unknown_architecture_is_refused_with_similar_names():
    with pytest.raises(ValueError, match=r"must be an architecture of open_clip, got 'vit-b-33'; similar: .*ViT-B-32"):
        load_clip(ClipConfig(name="vit-b-33", pretrained="openai"))


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"must be a tag of ViT-B-16, .*got 'opnai'; tags: openai, laion400m_e31"):
        load_clip(ClipConfig(name="ViT-B-16", pretrained="opnai"))


def test_missing_damaged_and_mismatched_files(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-test-arch", MODEL)

    def attempt(name: str, content: bytes | None = None) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        load_clip(ClipConfig(name="small-test-arch", pretrained=str(tmp_path / name)))

    with pytest.raises(ValueError, match=rf"must be an existing checkpoint of small.*got {tmp_path}/none\.pt"):
        attempt("none.pt")
    for name, content in (("broken.safetensors", b"nothing"), ("broken.pt", b"nothing"), ("empty.pt", b"")):
        with pytest.raises(ValueError, match=rf"cannot load {tmp_path}/{name} into small-test-arch: expected a state"):
            attempt(name, content)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"cannot load .*other\.safetensors into small-test-arch"):
        attempt("other.safetensors")


def test_no_pickled_code_is_run(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-test-arch", MODEL)

    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"state_dict": Bad()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"cannot load .*bad\.pt"):
        load_clip(ClipConfig(name="small-test-arch", pretrained=str(tmp_path / "bad.pt")))
    assert not (tmp_path / "was-run").exists()


def test_folders_that_lack_something(folder, tmp_path):
    with pytest.raises(
        ValueError, match=rf"the folder {tmp_path}/none does not exist: expected open_clip_config\.json"
    ):
        load_clip(ClipConfig(name=f"local-dir:{tmp_path}/none"))
    weights = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"cannot load a CLIP from {folder}: expected the weights and the tokenizer"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))  # and not a model with random weights
    weights.pop("visual.proj")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"cannot load a CLIP from .*visual\.proj"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no open_clip_config\.json"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))


def test_a_resize_that_is_not_supported(tmp_path):
    folder = write_folder(tmp_path / "clip", preprocess={"resize_mode": "longest"})
    with pytest.raises(ValueError, match=r"resize_mode must be .*got 'longest'.*change preprocess_cfg"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))


def test_inputs_of_another_kind_are_refused(tiny):
    for images in (torch.zeros(2, 32, 32, 3), torch.zeros(2, 3, 32, 32).byte(), torch.zeros(1, 28, 28, 3).byte()):
        with pytest.raises(ValueError, match=r"images must be uint8 \(B, 32, 32, 3\), got"):
            tiny.embed_images(images)
    for call in (tiny.tokenize, tiny.embed_texts):
        with pytest.raises(ValueError, match=r"must be a sequence of strings, got 'three'"):
            call("three")
        with pytest.raises(ValueError, match=r"must be a sequence of strings"):
            call(["three", 3])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        tiny.embed_texts(TEXTS, batch_size=0)


# -- caching


def test_each_distinct_text_is_encoded_once(folder, monkeypatch):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    seen = encoded(clip, monkeypatch)
    rows = clip.embed_texts(["b", "a", "b", "c", "a"], batch_size=2)
    assert sorted(seen) == ["a", "b", "c"]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[4])
    assert not torch.equal(rows[0], rows[1])
    again = clip.embed_texts(["c", "d", "a"])
    assert sorted(seen) == ["a", "b", "c", "d"]
    assert torch.equal(again[[0, 2]], rows[[3, 1]])
    torch.testing.assert_close(rows[1:2], functional.normalize(clip.text_features(clip.tokenize(["a"])), dim=-1))


def test_changed_weights_are_noticed(folder, monkeypatch):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    before = clip.embed_texts(["a"])
    seen = encoded(clip, monkeypatch)
    with torch.no_grad():
        clip.network.ln_final.weight.mul_(-1)
    assert not torch.equal(clip.embed_texts(["a"]), before)
    clip.requires_grad_(True)
    clip.embed_texts(["a"])
    clip.embed_texts(["a"])
    assert seen == ["a"] * 3  # nothing is cached while weights may change
    clip.requires_grad_(False)
    clip.embed_texts(["a"])
    clip.train().eval()
    clip.embed_texts(["a"])
    assert seen == ["a"] * 5


def test_training_the_image_tower_keeps_the_cache_of_texts(folder, monkeypatch):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    clip.network.visual.requires_grad_(True)
    seen = encoded(clip, monkeypatch)
    clip.embed_texts(["a"])
    clip.embed_texts(["a"])
    assert seen == ["a"]


def test_copies_are_independent(folder):
    clip = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    rows = clip.embed_texts(TEXTS)
    for other in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert len(other.text_cache) == 0
        assert torch.equal(other.embed_texts(TEXTS), rows)
        assert torch.equal(other.embed_images(make_images(clip)), clip.embed_images(make_images(clip)))
        with torch.no_grad():
            other.network.ln_final.weight.mul_(-1)
        assert not torch.equal(other.embed_texts(TEXTS), clip.embed_texts(TEXTS))


def test_the_cache_evicts_the_least_recently_used():
    cache = TextCache(2)
    cache.add({"a": torch.zeros(1), "b": torch.ones(1)}, "state")
    assert set(cache.find(["a"], "state")) == {"a"}
    cache.add({"c": torch.ones(1)}, "state")
    assert set(cache.find(["a", "b", "c"], "state")) == {"a", "c"}
    assert cache.find(["a"], "another state") == {}
    assert len(cache) == 0
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        TextCache(0)
