"""Who and what may fill a story's open places when no required word does: names, heroes, places, days, small things."""

from tools.bedtime_tiny.wordlists import words

BOYS = words("boys")
GIRLS = words("girls")
ANIMALS = words("animals")
BIRDS = words("birds")
HERO_ADJECTIVES = words("hero adjectives")
DAY = words("day weather")
NIGHT = words("night weather")
TIMES = {"morning": DAY, "afternoon": DAY, "day": DAY, "evening": NIGHT, "night": NIGHT}
SEASONS = ("spring", "summer", "autumn", "winter")
GROWN_UPS = words("grown-ups")
TOYS = words("toys")
FOODS = words("foods")
NEARBY = (
    "by the gate", "near the path", "under a tree", "on the hill", "next to a rock", "in the grass", "by the fence",
    "close by", "over there", "under a bush", "by the wall", "near the door",
)  # fmt: skip
FAR = ("the hill", "the gate", "far away", "next door", "the window", "the other side", "the old house")
PLACES: dict[str, tuple[str, ...]] = {
    "forest": ("in the forest", "in a green forest", "under the tall trees", "deep in the woods", "by an old oak tree"),
    "sea": ("by the sea", "on a sandy beach", "near the blue sea", "on a small island", "by the harbour"),
    "farm": ("on a farm", "in an old barn", "on a green farm", "near the farmhouse", "in the farmyard"),
    "garden": (
        "in a garden", "in a garden full of roses", "behind the garden gate", "among the flowers", "by the rose bush",
    ),
    "snow": ("in the snow", "on a snowy hill", "in a snowy village", "in a white, snowy wood", "by a frozen pond"),
    "night": ("under the stars", "in the moonlight", "under the big moon", "in the quiet night", "under the night sky"),
    "home": ("at home", "in a cosy little house", "in the kitchen", "in a warm bedroom", "by the window at home"),
    "town": ("in a small town", "on a busy street", "near the toy shop", "in the town square", "above the bakery"),
    "river": ("by the river", "near a little pond", "beside a stream", "by a quiet lake", "on the old bridge"),
    "field": ("in a sunny meadow", "on a hill", "in a field of clover", "at the end of the lane", "in a green valley"),
}  # fmt: skip
