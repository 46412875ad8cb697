"""A generated data set of known structure, with images and texts, for first runs and tests.

Items are drawn figures: a shape in a colour, with a title. Shape and colour together are the item's cluster. Users like
two clusters and now and then take something popular from elsewhere. So the structure is planted three times: in the
images, in the titles, and in what users take, but few interactions an item make it hard to see in those alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from crane.data.dataset import Dataset, Interactions
from crane.data.split import TEST, TRAIN, VALIDATION, split_interactions

N_USERS = 1200
ITEMS_PER_CLUSTER = 20
RATIOS = (6.0, 2.0, 2.0)
TEXT_WIDTH = 64
_LEAST, _MOST = 4, 7  # interactions of a user
_ELSEWHERE = 0.2  # share of them outside the favourite clusters
_SKEW = 0.7  # popularity falls with the item's rank to this power

# Each shape is 8 rows of 8 pixels, a row in hexadecimal.
_SHAPES = {
    "disc": "3c7effffffff7e3c",
    "ring": "3c7ec3c3c3c37e3c",
    "square": "007e7e7e7e7e7e00",
    "cross": "181818ffff181818",
    "wedge": "0103070f1f3f7fff",
    "bars": "cccccccccccccccc",
}
_COLOURS = {
    "red": (220, 50, 40),
    "green": (50, 180, 70),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 190),
    "teal": (40, 180, 190),
}
_SYNONYMS = {
    "disc": ("disc", "round", "circle"),
    "ring": ("ring", "hoop", "loop"),
    "square": ("square", "block", "tile"),
    "cross": ("cross", "plus", "junction"),
    "wedge": ("wedge", "ramp", "slope"),
    "bars": ("bars", "striped", "lines"),
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald", "jade"),
    "blue": ("blue", "navy", "cobalt"),
    "yellow": ("yellow", "golden", "lemon"),
    "purple": ("purple", "violet", "plum"),
    "teal": ("teal", "cyan", "turquoise"),
}
_FILLERS = ("large", "small", "new", "classic", "soft", "sturdy", "print", "poster", "badge", "sticker", "gift", "set")
CLUSTERS = tuple((colour, shape) for colour in _COLOURS for shape in _SHAPES)


@dataclass(frozen=True, eq=False)
class DemoItems:
    """The items before they become features.

    Attributes:
        clusters: (I,) int64, index into ``CLUSTERS``.
        images: (I, 8, 8, 3) uint8.
        texts: I titles.
    """

    clusters: np.ndarray
    images: np.ndarray
    texts: list[str]


def demo_dataset(seed: int = 0) -> Dataset:
    """Generate the demo: the same seed gives the same data set.

    Users and items have readable ids, such as ``user-0042`` and ``teal-ring-07``. Each user's interactions are split
    6:2:2 at random.
    """
    generator = np.random.default_rng(seed)
    items = demo_items(generator)
    users, taken = _interactions(items.clusters, generator)
    labels = split_interactions(users, RATIOS, seed=seed)
    train, validation, test = (
        Interactions.from_pairs(users[labels == label], taken[labels == label]) for label in (TRAIN, VALIDATION, TEST)
    )
    number = np.arange(len(items.clusters)) % ITEMS_PER_CLUSTER
    names = [f"{'-'.join(CLUSTERS[c])}-{n:02d}" for c, n in zip(items.clusters, number, strict=True)]
    return Dataset(
        name="demo",
        user_ids=np.array([f"user-{u:04d}" for u in range(N_USERS)], dtype=object),
        item_ids=np.array(names, dtype=object),
        train=train,
        validation=validation,
        test=test,
        features={"image": image_features(items.images), "text": text_features(items.texts)},
    )


def demo_items(generator: np.random.Generator) -> DemoItems:
    """Draw ``ITEMS_PER_CLUSTER`` images and titles for each cluster."""
    clusters = np.repeat(np.arange(len(CLUSTERS)), ITEMS_PER_CLUSTER)
    return DemoItems(clusters, _draw(clusters, generator), [_title(*CLUSTERS[c], generator) for c in clusters])


def image_features(images: np.ndarray) -> np.ndarray:
    """Pixels, less the mean image.

    Args:
        images: (I, H, W, 3) uint8.

    Returns:
        (I, 3 H W) float32.
    """
    pixels = images.reshape(len(images), -1).astype(np.float64) / 255
    features: np.ndarray = (pixels - pixels.mean(axis=0)).astype(np.float32)
    return features


def text_features(texts: list[str], width: int = TEXT_WIDTH) -> np.ndarray:
    """Hashed bag of words, weighted by inverse document frequency, rows of unit length.

    Words go to column ``crc32(word) % width``; the weight of a column that ``n`` of I texts have is
    ``log((1 + I) / (1 + n)) + 1``.

    Returns:
        (I, width) float32.
    """
    words = [(row, word) for row, text in enumerate(texts) for word in text.split()]
    counts = np.zeros((len(texts), width))
    np.add.at(counts, ([row for row, _ in words], [zlib.crc32(word.encode()) % width for _, word in words]), 1)
    weighted = counts * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))) + 1)
    features: np.ndarray = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    return features.astype(np.float32)


def _draw(clusters: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each cluster's shape in its colour on grey, with a tint and noise of the item's own."""
    bits = {name: np.frombuffer(bytes.fromhex(rows), dtype=np.uint8) for name, rows in _SHAPES.items()}
    masks = np.stack([np.unpackbits(bits[shape]).reshape(8, 8, 1) for _, shape in CLUSTERS])[clusters]
    colours = np.array([_COLOURS[colour] for colour, _ in CLUSTERS])[clusters]
    tinted = colours[:, None, None, :] + generator.normal(0, 25, (len(clusters), 1, 1, 3))
    images = np.where(masks, tinted, 128) + generator.normal(0, 40, (len(clusters), 8, 8, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def _title(colour: str, shape: str, generator: np.random.Generator) -> str:
    """Two words for the colour, two for the shape, four that say nothing."""
    words = [
        *generator.choice(_SYNONYMS[colour], 2, replace=False),
        *generator.choice(_SYNONYMS[shape], 2, replace=False),
    ]
    return " ".join([*words, *generator.choice(_FILLERS, 4, replace=False)])


def _interactions(clusters: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw users' items without replacement, by popularity within two favourite clusters and, rarely, everywhere."""
    n_clusters = len(CLUSTERS)
    rank = np.concatenate([generator.permutation(ITEMS_PER_CLUSTER) for _ in range(n_clusters)])
    popularity = (rank + 1.0) ** -_SKEW * generator.lognormal(0, 0.5, n_clusters)[clusters]
    favourites = np.stack([generator.choice(n_clusters, 2, replace=False) for _ in range(N_USERS)])
    liked = (clusters == favourites[:, :1]) | (clusters == favourites[:, 1:])
    inside = liked * popularity
    chance = (1 - _ELSEWHERE) * inside / inside.sum(axis=1, keepdims=True) + _ELSEWHERE * popularity / popularity.sum()
    # The largest of log-probability + Gumbel noise are a weighted draw without replacement.
    ordered = np.argsort(-(np.log(chance) + generator.gumbel(size=chance.shape)), axis=1)
    counts = generator.integers(_LEAST, _MOST + 1, N_USERS)
    taken = np.arange(len(clusters)) < counts[:, None]
    return np.nonzero(taken)[0], ordered[taken]
