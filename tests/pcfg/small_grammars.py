"""Small grammars: one like those of the references, and random ones."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from fairseq.errors import DataError
from fairseq.pcfg.grammar import Grammar

TOY = """\
S S1 0.6
S S2 0.4
S1 A B 1.0
S2 B B 0.75
S2 B A 0.25
A C D 0.5
A C C 0.2
A a 0.3
B D D 0.27
B C D 0.28
B C D 0.05
B b 0.4
C c 0.5
C d 0.25
C e 0.25
D d 0.2
D e 0.3
D f 0.5
"""


@st.composite
def grammars(draw: st.DrawFn) -> Grammar:
    """Recursive or not, with chains of single symbols, unreachable symbols, impossible rules."""
    names = [f"N{n}" for n in range(draw(st.integers(1, 4)))]
    words = [f"w{n}" for n in range(draw(st.integers(1, 3)))]
    weight = st.integers(0, 4)
    rules = []
    for place, name in enumerate(names):
        rights = [
            (draw(st.sampled_from(names)), draw(st.sampled_from(names)))
            for _ in range(draw(st.integers(0, 2)))
        ]
        rights += [(word,) for word in draw(st.lists(st.sampled_from(words), max_size=2))]
        later = names[place + 1 :]
        rights += [(draw(st.sampled_from(later)),)] if later and draw(st.booleans()) else []
        rules += [(name, right, float(draw(weight))) for right in rights]
    try:
        return Grammar.from_rules(rules, normalize=True)
    except DataError:
        assume(False)
        raise
