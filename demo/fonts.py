"""The faces that text is printed with: families by name, those that training sees apart from those held out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

# All under the OFL, Apache-2.0, the Bitstream Vera or another permissive licence. Families drawn after one another
# (Arimo and Liberation Sans, Carlito and Lato) stand on the same side.
TRAINING_FAMILIES = frozenset(
    {
        *("Arimo", "B612", "B612 Mono", "Cabin", "Cantarell", "Cardo", "Comfortaa", "Comic Neue", "Courier Prime"),
        *("Courier Prime Sans", "Cousine", "DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "Dosis", "EB Garamond"),
        *("Fantasque Sans Mono", "Fira Code", "GFS Didot", "Go", "Go Mono", "Hack", "Hermit", "Inconsolata", "Inter"),
        *("Inter Display", "Jura", "League Mono", "League Spartan", "Liberation Mono", "Loma"),
        *("Liberation Sans", "Liberation Serif", "Linux Biolinum O", "Linux Libertine O", "Monoid", "National Park"),
        *("Noto Mono", "Noto Sans Mono", "Open Sans", "Open Sans Condensed", "Play", "Prociono", "Quicksand"),
        *("Roboto", "Roboto Condensed", "Sora", "Tinos", "Vollkorn", "Yanone Kaffeesatz", "mononoki"),
    }
)
HELD_OUT_FAMILIES = frozenset(
    {"Lato", "Carlito", "Caladea", "Gentium", "JetBrains Mono", "Karla", "PT Mono", "PT Sans", "PT Serif"}
)
SLANTED = 0.2  # the share of texts set in italics
# Too thin to survive scaling, or not plain letters.
_UNREADABLE_STYLES = ("thin", "hairline", "extralight", "extra light", "ultralight", "outline", "condensed light")


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One font file."""

    family: str
    style: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The faces drawn together."""

    name: str
    upright: tuple[Face, ...]
    slanted: tuple[Face, ...]


@lru_cache(maxsize=2048)
def load_font(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    """The font at an em of `pixels`; basic layout, whose advances add up, so letters can be located."""
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


def find_faces(folder: Path, families: frozenset[str]) -> tuple[Family, ...]:
    """The readable faces of these families below a folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".ttf", ".otf"})
    faces = [face for path in files if (face := _face(path)).family in families and _readable(face.style)]
    if not faces:
        raise ValueError(f"the font folder must hold one of {', '.join(sorted(families))}, {folder} holds none")
    names = sorted({face.family for face in faces})
    return tuple(_family(name, [face for face in faces if face.family == name]) for name in names)


def choose_face(rng: random.Random, families: Sequence[Family]) -> Face:
    """A face, every family as likely as every other however many styles it has; one in five is slanted."""
    family = rng.choice(families)
    slanted = not family.upright or (bool(family.slanted) and rng.random() < SLANTED)
    return rng.choice(family.slanted if slanted else family.upright)


def _family(name: str, faces: Sequence[Face]) -> Family:
    slanted = tuple(face for face in faces if _is_slanted(face))
    return Family(name=name, upright=tuple(face for face in faces if not _is_slanted(face)), slanted=slanted)


def _is_slanted(face: Face) -> bool:
    return (
        "italic" in Path(face.path).stem.lower() or "oblique" in Path(face.path).stem.lower() or "Italic" in face.style
    )


def _face(path: Path) -> Face:
    family, style = ImageFont.truetype(path, 20).getname()
    return Face(family=family or "", style=style or "", path=str(path))


def _readable(style: str) -> bool:
    return not any(word in style.lower() for word in _UNREADABLE_STYLES)
