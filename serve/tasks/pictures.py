"""Replies to look at: which clients prefer them."""

PNG = "image/png"
_JSON = "application/json"


def prefers_png(accept: str) -> bool:
    """Return True if ``Accept`` names PNG with a higher weight than JSON."""
    weights = {PNG: 0.0, _JSON: 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = _weight(parameters)
    return weights[PNG] > weights[_JSON]


def _weight(parameters: list[str]) -> float:
    text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0
