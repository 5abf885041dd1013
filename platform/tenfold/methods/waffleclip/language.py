"""Descriptors and concepts of classes from a language model, written to JSON files.

    python -m tenfold.methods.waffleclip.language --classes classes.txt --model gpt2 --out descriptors.json

Menon and Vondrick, "Visual Classification via Description from Large Language Models", ICLR 2023; the concepts are
from WaffleCLIP, section 3. An evaluation runs none of this; it only reads the files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from tenfold.data.descriptors import read_descriptors
from tenfold.hashing import content_hash
from tenfold.methods.waffleclip.concepts import concept_subset, parse_concept, parse_descriptors
from tenfold.methods.waffleclip.prompts import display
from tenfold.methods.waffleclip.text_files import read_names, read_object, write_json

DESCRIPTOR_TEMPERATURE = 0.7
DESCRIPTOR_TOKENS = 100
CONCEPT_TEMPERATURE = 0.0
CONCEPT_TOKENS = 300
NO_CONCEPT = ("", "nothing", "none", "unrelated")
"""Answers that mean that the classes have nothing in common."""
_QUESTION = "Question: By which visible features can one tell a {} in a photo?"
_ANSWER = "Answer: A {} in a photo can be told by:"
_EXAMPLES = {
    "heron": (
        "a long neck, often bent like the letter S",
        "long, thin legs",
        "grey, white or bluish feathers",
        "a pointed, yellowish bill",
        "shallow water around its feet",
    ),
    "kettle": (
        "a spout",
        "a handle at the side or on top",
        "a lid",
        "a rounded body of metal, glass or plastic",
        "a base with an electric cord",
    ),
}
"""Worked examples in the prompt: an animal and an appliance."""


class LanguageModel(Protocol):
    """Model that continues a prompt."""

    name: str
    """Name of the model in the cache of answers."""

    def complete(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        """Generate the continuation of a prompt, without the prompt.

        Args:
            prompt: Text to continue.
            temperature: Sampling temperature; 0 is greedy decoding.
            max_tokens: Maximum length of the answer.
        """
        ...


class CachedAnswers:
    """Cache of answers in a JSON file, in front of a model.

    Args:
        path: The file: model name to prompt to answer. It need not exist if a model is given.
        name: Name of the model whose answers are used.
        model: Model for prompts that are not in the file, to which its answers are added; None to raise instead.

    Raises:
        ValueError: The file is not such JSON.
    """

    def __init__(self, path: Path | str, name: str, model: LanguageModel | None = None) -> None:
        self.path = Path(path)
        self.name = name
        self._model = model
        self._answers: dict[str, dict[str, str]] = {}
        if self.path.exists():
            self._answers = read_object(self.path)
            for each, answers in self._answers.items():
                if not isinstance(answers, dict) or not all(isinstance(text, str) for text in answers.values()):
                    raise ValueError(f"{self.path} must map prompts to texts under {each!r}, got other JSON")

    def complete(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        """Return the cached answer to exactly this prompt, else that of the model.

        Raises:
            ValueError: There is neither a cached answer nor a model.
        """
        kept = self._answers.get(self.name, {}).get(prompt)
        if kept is not None:
            return kept
        if self._model is None:
            raise ValueError(
                f"{self.path} must hold an answer of {self.name!r} to the prompt that ends in {prompt[-60:]!r}, got "
                f"none; pass a model, or add the answer to the file"
            )
        answer = self._model.complete(prompt, temperature=temperature, max_tokens=max_tokens)
        self._answers.setdefault(self.name, {})[prompt] = answer
        write_json(self.path, self._answers)
        return answer


class TransformersModel:
    """A causal language model of the transformers library, run locally.

    Args:
        name: Name on the hub, or a folder in the library's format.
        device: Device of the model.
        seed: Seed of sampling; prompt and seed determine an answer, so answers do not depend on their order.

    Raises:
        ValueError: There is no such model, or it cannot be read.
    """

    def __init__(self, name: str, device: str = "cpu", seed: int = 0) -> None:
        # Imported here, since the library takes seconds to import and evaluations only read JSON.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._network: Any = AutoModelForCausalLM.from_pretrained(name).eval()
        except (OSError, ValueError) as error:  # which of them depends on what is missing
            raise ValueError(
                f"model must be a causal language model on the hub or in a local folder, got {name!r}: {error}"
            ) from error
        self._network.to(device)
        self.name = name
        self._device = device
        self._seed = seed

    def complete(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        inputs = self._tokenizer(prompt, return_tensors="pt").to(self._device)
        options = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        )
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(int(content_hash([self._seed, prompt])[:15], 16))
            tokens = self._network.generate(
                **inputs, **options, max_new_tokens=max_tokens, pad_token_id=self._tokenizer.eos_token_id
            )
        return str(self._tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def descriptor_prompt(class_name: str) -> str:
    """Build the prompt: two worked examples, then the question about a class; underscores become spaces."""
    parts = []
    for example, features in _EXAMPLES.items():
        lines = "\n".join(f"- {feature}" for feature in features)
        parts.append(f"{_QUESTION.format(example)}\n{_ANSWER.format(example)}\n{lines}\n")
    name = display(class_name)
    parts.append(f"{_QUESTION.format(name)}\n{_ANSWER.format(name)}\n")
    return "\n".join(parts)


def concept_prompt(class_names: Sequence[str]) -> str:
    """Build the prompt for what at most 25 of the classes have in common, with the beginning of the answer."""
    names = ", ".join(display(name) for name in concept_subset(list(class_names)))
    return (
        f"Question: Here are some names: {names}. What do all of them have in common? Use five words or fewer; "
        f"they may have nothing in common.\nAnswer: They are all"
    )


def ask_descriptors(model: LanguageModel, class_name: str) -> list[str]:
    """Ask for the visible features of a class; empty if no line of the answer starts with a dash and a space."""
    text = model.complete(
        descriptor_prompt(class_name), temperature=DESCRIPTOR_TEMPERATURE, max_tokens=DESCRIPTOR_TOKENS
    )
    # Models that only continue text append a question and an answer of their own.
    return parse_descriptors(text.split("\nQuestion:")[0])


def ask_concept(model: LanguageModel, class_names: Sequence[str]) -> str | None:
    """Ask for what the classes have in common; None if the answer is nothing."""
    text = model.complete(concept_prompt(class_names), temperature=CONCEPT_TEMPERATURE, max_tokens=CONCEPT_TOKENS)
    concept = parse_concept(text.split("\nQuestion:")[0].strip().split("\n")[0]).strip()
    return None if concept in NO_CONCEPT else concept


def fill_descriptors(path: Path | str, class_names: Sequence[str], model: LanguageModel) -> dict[str, list[str]]:
    """Write a descriptor file class by class, skipping classes that it already holds.

    Args:
        path: The file, kept in label order throughout.
        class_names: Keys of the file, in label order.
        model: Model to ask.

    Returns:
        Class to descriptors, in label order.

    Raises:
        ValueError: There are no classes, a name occurs twice, the file holds other classes, or some answers were not
            lists; the others are then in the file, and another seed or model can be asked for the rest.
    """
    path = Path(path)
    if not class_names or len(set(class_names)) < len(class_names) or "" in class_names:
        raise ValueError(f"class_names must be at least one name, none empty and none twice, got {list(class_names)}")
    done = read_descriptors(path) if path.exists() else {}
    if unknown := [name for name in done if name not in set(class_names)]:
        raise ValueError(f"{path} must hold the given classes only, got {unknown[0]!r}; choose another file")
    for name in class_names:
        if done.get(name):
            continue
        if found := ask_descriptors(model, name):
            done[name] = found
            write_json(path, {each: done[each] for each in class_names if done.get(each)})
    if missing := [name for name in class_names if not done.get(name)]:
        raise ValueError(
            f"{model.name} must answer with a list, got none for {len(missing)} of {len(class_names)} classes, first "
            f"{missing[0]!r}; the others are in {path}: use another seed or model, or write these by hand"
        )
    return {name: done[name] for name in class_names}


def fill_concept(path: Path | str, dataset: str, class_names: Sequence[str], model: LanguageModel) -> str | None:
    """Write a data set's concept (or null) to a file of concepts, unless it is already there."""
    path = Path(path)
    concepts = read_object(path) if path.exists() else {}
    if dataset not in concepts:
        concepts[dataset] = ask_concept(model, class_names)
        write_json(path, concepts)
    return concepts[dataset]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command at the top of this module; it resumes where it was interrupted."""
    parser = argparse.ArgumentParser(description="Describe classes with a language model on this machine.")
    parser.add_argument(
        "--classes", required=True, help="text file with a name a line, JSON list, or JSON object for its keys"
    )
    parser.add_argument("--model", required=True, help="causal language model: a name on the hub, or a folder")
    parser.add_argument("--out", required=True, help="descriptor file to write, or to complete")
    parser.add_argument("--concepts", help="file of concepts to which this data set's is added")
    parser.add_argument("--dataset", help="name of the data set in --concepts")
    parser.add_argument("--cache", help="file of cached answers; default: beside --out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args(argv)
    if (words.concepts is None) != (words.dataset is None):
        parser.error("--concepts and --dataset must be given together")
    out = Path(words.out)
    try:
        names = read_names(Path(words.classes))
        # The seed is part of the name, so that another seed asks again for answers that were not lists.
        model = TransformersModel(words.model, words.device, words.seed)
        cache = Path(words.cache) if words.cache else out.with_suffix(".answers.json")
        answers = CachedAnswers(cache, f"{words.model}#{words.seed}", model)
        if words.concepts is not None:
            print(f"concept: {fill_concept(words.concepts, words.dataset, names, answers)}")
        found = fill_descriptors(out, names, answers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{sum(map(len, found.values()))} descriptors of {len(found)} classes in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
