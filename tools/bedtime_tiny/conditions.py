"""The story features: what each additional condition asks for, and what the grammar does about it.

`data/story_features.json` is this table without its right-hand sides. An effect is "what:value"; `grammar.py` knows
what to do with each.
"""

from functools import cache

FEATURES: dict[str, dict[str, str]] = {
    "mood": {
        "make sure story has sad elements but ends well": "mood:sad",
        "make the story happy from start to end": "mood:happy",
        "keep the story calm and slow": "mood:calm",
        "make the story a little funny": "mood:funny",
        "add a touch of magic to the story": "mood:magical",
        "make the story feel warm and cosy": "mood:cosy",
        "let something surprising happen in the story": "mood:surprising",
    },
    "ending": {
        "end the story with the hero falling asleep": "end:sleep",
        "end the story with a big hug": "end:hug",
        "end the story with a soft song": "end:song",
        "let the stars come out at the end": "end:stars",
        "let everyone be safe at home at the end": "end:home",
        "end the story with laughter": "end:laugh",
        "finish the story with a good night kiss": "end:kiss",
    },
    "dialogue": {
        "let two friends talk in the story": "talk:free",
        "let someone whisper in the story": "talk:whisper",
        "let the hero ask a question": "talk:question",
        "let the hero say thank you": "talk:thanks",
        "let a grown-up say something kind": "talk:grownup",
        "let one friend invite the other to play": "talk:invite",
    },
    "moral": {
        "teach that sharing is good": "moral:share",
        "teach that it is good to be kind": "moral:kind",
        "show that it helps to try again": "moral:try",
        "show that waiting can be worth it": "moral:patient",
        "let somebody say sorry in the story": "moral:sorry",
        "teach that it is best to tell the truth": "moral:honest",
        "let the hero be thankful": "moral:thanks",
        "let the hero be a little brave": "moral:brave",
    },
    "setting": {
        "let the story happen in the forest": "place:forest",
        "let the story happen by the sea": "place:sea",
        "let the story happen on a farm": "place:farm",
        "let the story happen in a garden": "place:garden",
        "let the story happen on a snowy day": "place:snow",
        "let the story happen at night": "place:night",
        "let the story happen at home": "place:home",
        "let the story happen in a small town": "place:town",
        "let the story happen near a river or a pond": "place:river",
    },
    "character": {
        "let the hero be an animal": "hero:animal",
        "let the hero be a child": "hero:child",
        "let the hero be shy": "hero:shy",
        "let the hero be very curious": "hero:curious",
        "let a grandmother be in the story": "hero:grandma",
        "let the hero be a bear": "hero:bear",
        "let the hero be a bird": "hero:bird",
        "let the hero be a mouse": "hero:mouse",
    },
    "senses": {
        "mention a nice smell in the story": "sense:smell",
        "mention a soft sound in the story": "sense:sound",
        "mention how something feels to touch": "sense:touch",
        "mention how something tastes": "sense:taste",
    },
}


@cache
def effects() -> dict[str, str]:
    """The effect of every condition text."""
    return {text: effect for texts in FEATURES.values() for text, effect in texts.items()}


def effect_of(condition: str) -> tuple[str, str]:
    """What the condition asks for and its value; two empty texts if the grammar does not know it."""
    what, _, value = effects().get(condition, "").partition(":")
    return what, value
