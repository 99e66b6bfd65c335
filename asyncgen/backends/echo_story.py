"""The stories that the echo backend tells: sixteen variants of each sentence, drawn by the bits of a seed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["write"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio (Knuth's multiplicative hashing)

_NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Elsa",
    "Finn",
    "Gwen",
    "Hugo",
    "Ida",
    "Jack",
    "Kaya",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Pip",
)
_TIMES = (
    "One quiet evening a child called ",
    "Long before breakfast a child called ",
    "On a windy hill a child called ",
    "Near the old mill a child called ",
    "When summer was over a child called ",
    "Behind the garden wall a child called ",
    "After a warm bath a child called ",
    "In the tall white house a child called ",
    "Under a sleepy cloud a child called ",
    "Down by the stream a child called ",
    "While the kettle sang a child called ",
    "At the end of the lane a child called ",
    "On a rainy Sunday a child called ",
    "Before the lamp went out a child called ",
    "Beside the sandy beach a child called ",
    "In a house full of clocks a child called ",
)
_DEEDS = (
    " could not fall asleep at all.",
    " heard rain tapping softly on the roof.",
    " kept a tiny wooden boat in a box.",
    " was counting the ducks one by one.",
    " folded a boat out of blue paper.",
    " found a puddle as round as a plate.",
    " asked for just one more story.",
    " had a boat with a red sail.",
    " sat on the steps with bare feet.",
    " waited for the boat to come home.",
    " drew a little boat on the window.",
    " saw the first star of the night.",
    " built a harbour from kitchen spoons.",
    " whispered good night to every toy.",
    " looked after a very small boat.",
    " listened to the slow tick and tock.",
)
_WORD_SENTENCES = tuple(
    tuple(part.split("{}"))
    for part in (
        'Grandpa smiled and said the word "{}" twice.',
        'A friendly snail knew a rhyme about "{}" by heart.',
        'On the sail somebody had written "{}" in green paint.',
        'The wind seemed to call "{}" over the water.',
        'Mother sang a low song with "{}" in it.',
        'In the book the next page showed "{}" very large.',
        'A parrot on the fence kept shouting "{}" at everyone.',
        'That night they dreamed of "{}" and giggled.',
        'The baker had baked a cake that read "{}" on top.',
        'An old map had "{}" marked with a golden cross.',
        'Three little frogs practised saying "{}" until noon.',
        'Even the moon looked as if it thought of "{}" now.',
        'A letter came, and it began with "{}" in curly ink.',
        'The cat purred something that sounded like "{}" to them.',
        'Father hid a note with "{}" under the pillow.',
    )
)
_ALONG = (
    "The boat rocked gently and did not get wet inside.",
    "A brown duck swam past and nodded politely.",
    "Small waves carried it around the first corner.",
    "There was room for two acorns and a crumb.",
    "Nobody was in a hurry on that soft afternoon.",
    "The water smelled of mint and of wet stones.",
    "A dragonfly showed the way with shining wings.",
    "It sailed under a bridge made of one plank.",
    "Some leaves came along like slow yellow friends.",
    "The sun painted a bright stripe down the middle.",
    "Each bubble popped with a tiny happy sound.",
    "A mouse on the bank waved her striped scarf.",
    "Far off, sheep were talking about the weather.",
    "The reeds stepped aside to let everyone through.",
    "It went slowly, because slow things see more.",
    "A drop of dew rode along on the mast.",
)
_TROUBLE = (
    "Then a knot came loose, and the sail fell down.",
    "Suddenly a big log lay across the stream.",
    "But the wind stopped, and nothing moved any more.",
    "Then fog rolled in, thick as porridge with milk.",
    "All at once the boat was stuck between two stones.",
    "But a curious goose took the rope in her beak.",
    "Then evening came much earlier than they had planned.",
    "Just there the stream split into left and right.",
    "But a hole let in a few cold drops.",
    "Then a fish pulled so hard that everything shook.",
    "Soon the lantern flickered and nearly went dark.",
    "But the paddle slipped away into the green weeds.",
    "Then thunder grumbled somewhere behind the forest.",
    "Halfway there, they noticed that the map was upside down.",
    "But the bridge ahead was far too low to pass.",
    "Then the bow got caught in a spider's silver thread.",
)
_HELP = (
    "Together they pushed, and pushed, until it gave way.",
    "A kind beaver fixed it with one clever tooth.",
    "They tied a ribbon around it, and that was enough.",
    "So they took a deep breath and tried again.",
    "A heron bent down and lifted it over at once.",
    "They asked nicely, and asking nicely helped.",
    "With a spoon and some patience it was soon done.",
    "Holding hands made it only half as difficult.",
    "They waited a little, and the trouble went by itself.",
    "A bright firefly came and lit the whole path.",
    "Two turtles lent them their broad and steady backs.",
    "They laughed, since being cross would not have worked.",
    "Someone had a spare button, which fitted perfectly.",
    "They shared the last biscuit and felt brave afterwards.",
    "A gentle shove from an otter put everything right.",
    "They sang loudly, and the echo showed them where to go.",
)
_HOME = (
    "On the other shore the grass was soft and dry.",
    "Everyone they met there got a wave and a smile.",
    "The harbour lights blinked yellow, one after another.",
    "They drank warm milk from cups without handles.",
    "A blanket was waiting, still warm from the oven door.",
    "The stars came out to count who was home.",
    "Inside, the soup was hot and the bread was fresh.",
    "The boat was set to dry beside the slippers.",
    "A hedgehog swept the steps so that nobody would trip.",
    "They told it all again, and it grew a bit each time.",
    "The clock struck seven and yawned after the last stroke.",
    "Somebody had left the little gate open for them.",
    "An owl agreed to keep an eye on everything.",
    "The pillow was cool on both of its sides.",
    "There was one kiss for each toe and one for luck.",
    "Outside, the stream kept humming the very same tune.",
)
_ENDINGS = (
    "And soon every single one of them was fast asleep.",
    "And that is how the boat learned to find its bed.",
    "After that, sleeping was the easiest thing in the world.",
    "So they closed their eyes and sailed off into a dream.",
    "And the night tucked in the whole valley, very gently.",
    "Tomorrow there would be another stream, but now it was night.",
    "And the lamp went out with a small and friendly click.",
    "They were home, they were warm, and all was well.",
    "And if the rain has not stopped, it is still singing there.",
    "Good night, said the boat, and good night, said the sea.",
    "And in the morning the red sail was dry again.",
    "Nobody heard the end, because they were already snoring.",
    "So the day ended as it should, with a hug.",
    "And the moon watched over them until the sun came back.",
    "Then it was quiet, and the quiet was kind.",
    "And the little boat rocked them all the way to sleep.",
)


def write(seed: int, words: Sequence[str]) -> str:
    """A story of 60 to 140 words that holds ``words``: a function of the arguments alone.

    The first three words get a sentence each; further ones share one, which may take it beyond 140 words. Without
    words there are 2**38 stories, and neighbouring seeds tell different ones.
    """
    bits = ((seed + 1) * _GOLDEN) & _MASK
    bits ^= bits >> 29  # multiplication only ever moves influence upwards
    parts = [
        _TIMES[bits >> 60] + _NAMES[bits >> 56 & 15] + _DEEDS[bits >> 52 & 15],
        _ALONG[bits >> 48 & 15],
    ]
    for place, word in enumerate(words[:3]):
        before, after = _WORD_SENTENCES[(bits >> (44 - 4 * place) & 15) % 5 + 5 * place]
        parts.append(before + word + after)
    if len(words) > 3:
        parts.append(f"They also remembered {' and '.join(words[3:])}.")
    parts += (
        _TROUBLE[bits >> 32 & 15],
        _HELP[bits >> 28 & 15],
        _HOME[bits >> 24 & 15],
        _ALONG[(bits >> 48) + 1 + (bits >> 20 & 7) & 15],  # not the one above
        _HOME[(bits >> 24) + 1 + (bits >> 16 & 7) & 15],
        _ENDINGS[bits >> 12 & 15],
    )
    return " ".join(parts)
