"""The noise: `kaem.noise` against the known answers of Random123, whose generator it implements.

What philox4x32-10 makes of three counters and keys, as published with the library of Salmon et al. (2011).
"""

from __future__ import annotations

import numpy as np

from kaem.artifact import Figure
from kaem.noise import philox4x32, uniforms

_KNOWN_ANSWERS = (
    ((0x00000000,) * 4, (0x00000000,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def noise_mismatches() -> Figure:
    """Count the words that differ from the known answers, and the uniforms of seed 0, index 0 that are not theirs."""
    wrong = 0
    for counter, key, answer in _KNOWN_ANSWERS:
        drawn = philox4x32(np.array(counter, np.uint32)[:, None], key)[:, 0]
        wrong += int(np.count_nonzero(drawn != np.array(answer, np.uint32)))
    signed = [word - (word >> 31 << 32) for word in _KNOWN_ANSWERS[0][2]]
    wanted = [np.float32((word + 0.5) * 2.0**-32) for word in signed]
    wrong += int(np.count_nonzero(uniforms(0, 0, 1, 4)[0] != wanted))
    return Figure(
        name="noise_mismatches",
        value=float(wrong),
        bound=0.0,
        meaning="words of noise that differ from the known answers of Random123 (philox4x32-10)",
    )
