"""Prompts from a class name and a descriptor.

Roth et al., "Waffling around for Performance", ICCV 2023; the wording of descriptors is that of Menon and Vondrick,
"Visual Classification via Description from Large Language Models", ICLR 2023.
"""

from dataclasses import dataclass

PREFIX = "A photo of a "
"""Text before the class name without a concept."""

_SLOT = "{}"
# The first match decides; "a" matches any word that begins with it, "annual" and "arched" too.
_OPENINGS = (
    (("a",), "which is "),
    (("has", "often", "typically", "may", "can"), "which "),
    (("used",), "which is "),
    (("",), "which has "),
)


def build_prompt(
    class_name: str,
    descriptor: str | None,
    *,
    prefix: str = PREFIX,
    suffix: str = ".",
    separator: str = ", ",
    pre: str = "",
    phrase: bool = True,
    template: str | None = None,
) -> str:
    """Build a prompt of a class.

    Args:
        class_name: Raw key of the class; its underscores become spaces.
        descriptor: Description of the class; None for the plain prompt, "" for an empty descriptor.
        prefix: Text before the class name.
        suffix: Text at the end.
        separator: Text between class name and descriptor.
        pre: Text before the whole prompt, in prompts with a descriptor only.
        phrase: Whether the descriptor is turned into a relative clause.
        template: Text with one "{}" for the class name, in place of prefix and class name.

    Raises:
        ValueError: The template does not have exactly one slot.
    """
    wording = Wording(prefix=prefix, suffix=suffix, separator=separator, pre=pre, phrase=phrase)
    if descriptor is None:
        return wording.plain(class_name, template)
    return wording.head(class_name, template) + wording.tail(descriptor)


def descriptor_phrase(descriptor: str) -> str:
    """Turn a descriptor into a relative clause; the first matching rule, case-sensitive, decides the opening words.

    >>> descriptor_phrase("two wings"), descriptor_phrase("a long tail"), descriptor_phrase("may be striped")
    ('which has two wings', 'which is a long tail', 'which may be striped')
    """
    return next(opening for starts, opening in _OPENINGS if descriptor.startswith(starts)) + descriptor


def display(class_name: str) -> str:
    """Display name of a class: its key with spaces for underscores."""
    return class_name.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """Wording around class name and descriptor, split in two so that many prompts share the halves.

    The prompt of class c and descriptor d is ``head(c) + tail(d)``: C heads and M tails serve C * M prompts, and no
    finished text is searched for a class name.
    """

    prefix: str = PREFIX
    suffix: str = "."
    separator: str = ", "
    pre: str = ""
    phrase: bool = True

    def plain(self, class_name: str, template: str | None = None) -> str:
        """Prompt without a descriptor."""
        return self._subject(class_name, template) + self.suffix

    def head(self, class_name: str, template: str | None = None) -> str:
        """Part of a prompt up to and including its class name."""
        return self.pre + self._subject(class_name, template)

    def tail(self, descriptor: str) -> str:
        """Part of a prompt after its class name."""
        return self.separator + (descriptor_phrase(descriptor) if self.phrase else descriptor) + self.suffix

    def _subject(self, class_name: str, template: str | None) -> str:
        name = display(class_name)
        return self.prefix + name if template is None else fill_template(template, name)


def fill_template(template: str, text: str) -> str:
    """Insert a text into the one slot "{}" of a template; braces in the text have no meaning.

    Raises:
        ValueError: The template does not have exactly one slot.
    """
    if template.count(_SLOT) != 1:
        raise ValueError(f'a template must have exactly one slot "{{}}" for the class name, got {template!r}')
    return template.replace(_SLOT, text)
