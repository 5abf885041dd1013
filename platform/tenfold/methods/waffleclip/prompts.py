"""From a class name and a descriptor to the sentence that the text tower reads.

Roth et al., "Waffling around for Performance", ICCV 2023; the wording of descriptors is that of Menon and Vondrick,
"Visual Classification via Description from Large Language Models", ICLR 2023.
"""

from dataclasses import dataclass

PREFIX = "A photo of a "
"""What stands before the class name when no concept is known."""

_SLOT = "{}"
# The first row that fits decides; "a" is any word that begins with it, "annual" and "arched" too.
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
    """One prompt of one class.

    Args:
        class_name: The raw key of the class; its underscores become spaces.
        descriptor: What is said of the class; None gives the plain prompt, "" a descriptor without words.
        prefix: Text before the class name.
        suffix: Text at the end.
        separator: Text between class name and descriptor.
        pre: Text before everything, in prompts with a descriptor only.
        phrase: Turn the descriptor into a relative clause; without it the descriptor stands as it is.
        template: Sentence with one "{}" for the class name, in place of prefix and class name.

    Raises:
        ValueError: If the template has no slot or several.
    """
    wording = Wording(prefix=prefix, suffix=suffix, separator=separator, pre=pre, phrase=phrase)
    if descriptor is None:
        return wording.plain(class_name, template)
    return wording.head(class_name, template) + wording.tail(descriptor)


def descriptor_phrase(descriptor: str) -> str:
    """The descriptor as a relative clause; the first rule that fits, case-sensitive, decides its opening words.

    >>> descriptor_phrase("two wings"), descriptor_phrase("a long tail"), descriptor_phrase("may be striped")
    ('which has two wings', 'which is a long tail', 'which may be striped')
    """
    return next(opening for starts, opening in _OPENINGS if descriptor.startswith(starts)) + descriptor


def display(class_name: str) -> str:
    """The key of a class as people read it: underscores become spaces, all else stays."""
    return class_name.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """The words around class name and descriptor, cut in two so that many prompts can share the halves.

    The prompt of class c and descriptor d is ``head(c) + tail(d)``: C heads and M tails are made for C * M prompts, and
    no finished text is ever searched for a class name.
    """

    prefix: str = PREFIX
    suffix: str = "."
    separator: str = ", "
    pre: str = ""
    phrase: bool = True

    def plain(self, class_name: str, template: str | None = None) -> str:
        """The prompt without a descriptor."""
        return self._subject(class_name, template) + self.suffix

    def head(self, class_name: str, template: str | None = None) -> str:
        """A prompt up to its class name."""
        return self.pre + self._subject(class_name, template)

    def tail(self, descriptor: str) -> str:
        """A prompt from behind its class name."""
        return self.separator + (descriptor_phrase(descriptor) if self.phrase else descriptor) + self.suffix

    def _subject(self, class_name: str, template: str | None) -> str:
        name = display(class_name)
        return self.prefix + name if template is None else fill_template(template, name)


def fill_template(template: str, text: str) -> str:
    """Put a text into the one slot "{}" of a template; braces of the text itself mean nothing.

    Raises:
        ValueError: If the template has no slot or several.
    """
    if template.count(_SLOT) != 1:
        raise ValueError(f'a template has exactly one slot "{{}}" for the class name, got {template!r}')
    return template.replace(_SLOT, text)
