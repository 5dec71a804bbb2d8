"""The text that tokenizers are trained on and the demo learns: our own sentences, as short conversations."""

from __future__ import annotations

__all__ = ["CONVERSATIONS", "PICTURES", "sentences"]

CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("What does a lighthouse do?", "It shows ships at night where the rocks are."),
    ("Why do leaves fall in autumn?", "The tree lets them go so that it loses less water in the cold."),
    ("How do I keep bread fresh?", "Wrap it in a clean cloth and keep it in a dry place."),
    ("Where do rivers end?", "Most of them end in the sea, and some of them in a lake."),
    ("What is a compass for?", "It points to the north, so you can find your way without a road."),
    ("How long should I boil an egg?", "Six minutes for a soft one, ten minutes for a hard one."),
    ("Why is the sea salty?", "Rivers carry a little salt from the land, and the water leaves without it."),
    ("What makes a good chair?", "A seat of the right height, a straight back and four even legs."),
    ("When should I water the garden?", "Early in the morning, when the sun is still low."),
    ("How do bees find flowers?", "They follow the colour and the scent, and tell the others where to go."),
    ("What is snow made of?", "It is made of small crystals of ice that grow in a cold cloud."),
    ("How do I sharpen a pencil?", "Turn it slowly and press lightly, so that the point does not break."),
    ("Why do cats sleep so much?", "They rest in the day because they like to hunt in the evening."),
    ("What is a bridge?", "A bridge is a road that crosses a river, a valley or another road."),
    ("How can I learn to swim?", "Start in warm and shallow water, and learn to float before you move."),
    ("What do I need to paint a wall?", "You need a brush, a roller, some paint and an old shirt."),
    ("Why does the moon change its shape?", "We see only the part of it that the sun is shining on."),
    ("How do I fold a letter?", "Fold it twice, so that it has three equal parts."),
    ("What is a map?", "It is a small picture of a large place, seen from above."),
    ("Why do we have clocks?", "They let people in different places agree on when to meet."),
    ("How does a kite stay up?", "The wind pushes it up while the string holds it back."),
    ("What is the best way to thank someone?", "Say what they did, and say what it changed for you."),
    ("How do I carry a heavy box?", "Bend your knees, keep your back straight and hold it close."),
    ("What do owls eat?", "They eat mice, beetles and other small animals that move at night."),
)
"""Question and answer, a pair each."""

PICTURES: tuple[tuple[tuple[int, int, int], str], ...] = (
    ((220, 40, 40), "The picture is red, like a ripe apple."),
    ((40, 180, 60), "The picture is green, like the grass in spring."),
    ((40, 70, 210), "The picture is blue, like the sea in summer."),
    ((240, 210, 50), "The picture is yellow, like a field of corn."),
)
"""The colour (red, green, blue; 0 to 255) of a plain picture, and what to say of it."""


def sentences() -> list[str]:
    """Every sentence of the corpus, in its order."""
    spoken = [text for pair in CONVERSATIONS for text in pair]
    return [*spoken, *(text for _, text in PICTURES), "Which colour is the picture?"]
