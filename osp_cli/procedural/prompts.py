"""What people may call the motions and styles, and sentences made of it.

Used three ways: to teach the tiny language model its vocabulary, to write captions of rendered
clips, and to read back what was asked for. Speeds are words too; a direction without
a speed word is `normal`.
"""

from __future__ import annotations

import random

from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, SPEEDS, Motion
from osp_cli.procedural.styles import STYLE_OPERATORS

CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "pan-left": (
        "pan left",
        "the camera pans left",
        "the camera pans to the left",
        "camera moves left",
        "the camera glides to the left",
        "slide left",
        "a leftward pan",
        "tracking shot to the left",
        "the view drifts left",
        "we travel left",
        "pan to the left",
        "camera pans left",
        "move the camera left",
        "panning left",
        "move left",
        "the camera slides left",
        "truck left",
    ),
    "pan-right": (
        "pan right",
        "the camera pans right",
        "the camera pans to the right",
        "camera moves right",
        "the camera glides to the right",
        "slide right",
        "a rightward pan",
        "tracking shot to the right",
        "the view drifts right",
        "we travel right",
        "pan to the right",
        "camera pans right",
        "move the camera right",
        "panning right",
        "move right",
        "the camera slides right",
        "truck right",
    ),
    "tilt-up": (
        "tilt up",
        "the camera tilts up",
        "pan up",
        "camera moves up",
        "the camera rises",
        "the camera looks up",
        "an upward tilt",
        "crane up",
        "the view climbs upward",
        "the camera lifts towards the sky",
        "camera tilts up",
        "tilting up",
        "move the camera up",
        "look up",
        "the camera moves upwards",
        "move up",
    ),
    "tilt-down": (
        "tilt down",
        "the camera tilts down",
        "pan down",
        "camera moves down",
        "the camera sinks",
        "the camera looks down",
        "a downward tilt",
        "crane down",
        "the view descends",
        "the camera lowers towards the ground",
        "camera tilts down",
        "tilting down",
        "move the camera down",
        "look down",
        "the camera moves downwards",
        "move down",
    ),
    "zoom-in": (
        "zoom in",
        "the camera zooms in",
        "push in",
        "the camera moves closer",
        "dolly in",
        "the camera moves forward",
        "a push towards the subject",
        "close in on the scene",
        "fly forward",
        "the camera approaches",
        "camera zooms in",
        "zooming in",
        "move closer",
        "zoom into the picture",
        "go closer",
        "come closer",
        "dive in",
    ),
    "zoom-out": (
        "zoom out",
        "the camera zooms out",
        "pull back",
        "the camera moves away",
        "dolly out",
        "the camera moves backward",
        "a pull away from the subject",
        "the view widens",
        "fly backward",
        "the camera retreats",
        "camera zooms out",
        "zooming out",
        "move away",
        "zoom out of the picture",
        "go back",
        "step back",
        "draw back",
    ),
    "roll-left": (
        "roll left",
        "the camera rolls left",
        "rotate counterclockwise",
        "the picture turns counterclockwise",
        "spin left",
        "the view rotates to the left",
        "turn anticlockwise",
        "camera rolls left",
        "rolling to the left",
        "rotate left",
        "turn the picture left",
        "rotating counterclockwise",
    ),
    "roll-right": (
        "roll right",
        "the camera rolls right",
        "rotate clockwise",
        "the picture turns clockwise",
        "spin right",
        "the view rotates to the right",
        "turn clockwise",
        "camera rolls right",
        "rolling to the right",
        "rotate right",
        "turn the picture right",
        "rotating clockwise",
    ),
}
SCENE_PHRASES: dict[str, tuple[str, ...]] = {
    "clouds": (
        "drifting clouds",
        "clouds drift",
        "the clouds move across the sky",
        "the sky flows",
        "clouds float by",
        "wind in the sky",
        "clouds drifting",
        "drifting sky",
        "moving clouds",
        "the clouds drift by",
        "passing clouds",
    ),
    "ripples": (
        "rippling water",
        "the water ripples",
        "waves",
        "gentle waves roll",
        "the sea moves",
        "the lake shimmers",
        "water flows",
        "ripples on the water",
        "the water moves",
        "waves on the lake",
        "flowing water",
        "the river flows",
        "shimmering water",
    ),
    "sway": (
        "the subject sways",
        "it sways from side to side",
        "swaying in the wind",
        "dancing",
        "the subject rocks",
        "turns its head",
        "moves its head",
        "waves hello",
        "swaying",
        "it sways",
        "rocking back and forth",
        "the head turns",
        "nods its head",
        "leaves sway in the breeze",
        "moves from side to side",
    ),
    "snow": (
        "snow",
        "snow falls",
        "it is snowing",
        "snowflakes drift down",
        "a snowfall",
        "winter snow",
        "snowing",
        "falling snow",
        "snow is falling",
        "snowflakes",
    ),
    "rain": (
        "rain",
        "rain falls",
        "it is raining",
        "raindrops pour down",
        "heavy rain",
        "a rainy day",
        "raining",
        "falling rain",
        "rain is falling",
        "raindrops",
    ),
    "fire": (
        "fire",
        "flickering fire",
        "the fire burns",
        "flames flicker",
        "flickering candlelight",
        "burning flames",
        "firelight",
        "the torch flickers",
        "a campfire glows",
    ),
}
SPEED_PHRASES: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "slow", "gently", "very slowly", "calmly", "in slow motion"),
    "normal": ("",),
    "fast": ("fast", "quickly", "rapidly", "very fast", "at speed", "swiftly", "in a hurry"),
}
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "ghibli": ("ghibli style", "ghibli", "studio ghibli", "miyazaki anime"),
    "3d-rendering": ("3d rendering style", "3d rendering", "3d render", "computer graphics"),
    "cyberpunk": ("cyberpunk style", "cyberpunk", "neon cyberpunk city"),
    "ink": ("ink painting style", "ink", "ink painting", "ink wash", "sumi-e"),
    "oil": ("oil painting style", "oil", "oil painting", "oil on canvas"),
    "pixel-art": ("pixel art style", "pixel art", "8-bit pixels", "retro game"),
    "vaporwave": ("vaporwave style", "vaporwave", "vaporwave aesthetic", "synthwave"),
    "disney": ("disney style", "disney", "disney animation"),
    "fairy-tale": ("fairy tale style", "fairy tale", "fairytale illustration", "storybook"),
    "gotham-noir": ("gotham noir style", "gotham noir", "film noir", "noir"),
    "lego": ("lego style", "lego", "lego bricks", "built from bricks"),
    "chibi": ("chibi style", "chibi", "super-deformed chibi", "cute chibi"),
    "watercolor": ("watercolor style", "watercolor", "watercolour", "watercolor painting"),
}
_SUBJECTS = (
    "a cat", "a dog", "a fox", "a woman", "a man", "a child", "a bird", "a horse", "the train",
    "a car", "a boat", "a tree", "flowers", "a mountain", "the lake", "a city", "a street at night",
    "the beach", "a forest", "a castle", "a rocket", "a cup of coffee", "a house", "a robot",
    "an astronaut", "a portrait", "a bridge", "the sunset", "a garden", "a room", "an old town",
)  # fmt: skip
_FRAMES = (
    "{s}", "a photo of {s}", "{s} in the light", "{s}, cinematic", "a picture of {s}, high quality",
    "{s} with a blue sky", "beautiful shot of {s}", "{s}, detailed", "{s} in the evening",
    "{s} near the water", "{s}, soft light", "a view of {s}",
)  # fmt: skip


def random_motion(rng: random.Random) -> Motion:
    """Half camera moves, a third scene motions, some of both, some that name nothing."""
    draw = rng.random()
    speed = rng.choices(SPEEDS, (0.25, 0.5, 0.25))[0]
    if draw < 0.14:
        return Motion()
    camera = rng.choice(CAMERA_MOTIONS) if draw < 0.74 else None
    scene = rng.choice(SCENE_MOTIONS) if draw >= 0.62 else None
    return Motion(camera, scene, speed)


def motion_words(rng: random.Random, motion: Motion) -> str:
    """One way to ask for a motion; empty when it names nothing."""
    parts = []
    if motion.camera:
        parts.append(_with_speed(rng, rng.choice(CAMERA_PHRASES[motion.camera]), motion.speed))
    if motion.scene:
        phrase = rng.choice(SCENE_PHRASES[motion.scene])
        parts.append(phrase if parts else _with_speed(rng, phrase, motion.speed))
    rng.shuffle(parts)
    return rng.choice((", ", " and ", " while ", ". ")).join(parts)


def _with_speed(rng: random.Random, phrase: str, speed: str) -> str:
    word = rng.choice(SPEED_PHRASES[speed])
    if not word:
        return phrase
    return f"{phrase} {word}" if rng.random() < 0.7 else f"{word} {phrase}"


def random_prompt(rng: random.Random, motion: Motion, style: str | None) -> str:
    """A sentence a person might type for this motion and style."""
    words = motion_words(rng, motion)
    subject = rng.choice(_FRAMES).format(s=rng.choice(_SUBJECTS)) if rng.random() < 0.55 else ""
    pieces = [piece for piece in (subject, words) if piece]
    if rng.random() < 0.3:
        pieces.reverse()
    text = ", ".join(pieces)
    if style:
        phrase = rng.choice(STYLE_PHRASES[style])
        if rng.random() < 0.7:  # the order in which the command line joins them
            text = f"{phrase}, {text}" if text else phrase
        else:
            text = f"{text}, in {phrase}" if text else f"in {phrase}"
    if rng.random() < 0.2:
        text = text[:1].upper() + text[1:] + "."
    return text


def random_style(rng: random.Random) -> str | None:
    """One of the thirteen, or (a third of the time) none."""
    return None if rng.random() < 0.34 else rng.choice(tuple(STYLE_OPERATORS))
