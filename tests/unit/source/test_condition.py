"""A condition that somebody asks for stays within its own parentheses."""

from __future__ import annotations

import pytest

from cdc_agent.errors import UsageError
from cdc_agent.source.condition import check_condition


@pytest.mark.parametrize(
    "text",
    [
        "n > 1",
        "lang = 'de' and (n between 1 and 2 or title like '%100\\%')",
        "\"odd ) name\" = ')'",
        "title = 'it''s -- no comment; /* none */'",
        "tags @> array['a', 'b'] and body ~ '^\\d+$'",
        "created_at > now() - interval '1 day'",
        "id in (select id from other)",
        "a = 'x\\'' or true)'",
        "a$b = 1 and e = 'x' and price = '$5'",
    ],
)
def test_a_condition_passes(text: str) -> None:
    check_condition(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "true) or (true",
        "true)",
        "(true",
        "true) union all select (1",
        "true; drop table t",
        "true -- and no more",
        "true /* and no more",
        "a = 'open",
        'a = "open',
        "a = $$text$$",
        "a = $tag$text$tag$",
        "a = $1",
        "a = E'\\') or true'",
        "a = e'x'",
        'U&"d\\0061t" = 1',
        "nul\0",
    ],
)
def test_what_could_mean_more_than_a_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_condition(text)
