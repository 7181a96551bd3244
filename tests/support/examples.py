"""How many examples Hypothesis tries."""

from hypothesis import settings


def examples(count: int) -> settings:
    """So many, and in proportion more under a profile that tries more than Hypothesis's own 100: nightly a hundred times.

    `settings(max_examples=...)` on a test would win over the profile.
    """
    return settings(max_examples=count * settings().max_examples // 100)
