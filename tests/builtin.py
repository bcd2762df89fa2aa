"""Built-in recipes by what they read: some want a competition that says where the frames are."""

from fb3.recipe import builtin_names

WITH_FRAMES = ["dual-stream", "single-stream"]
OF_TEXTS = sorted({*builtin_names()} - {*WITH_FRAMES})
