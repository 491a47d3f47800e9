"""What every task refuses before it looks at any data."""

from __future__ import annotations

import re

import pytest

from vmamba.errors import OptionError
from vmamba.tasks import TASKS, task_class
from vmamba.tasks.protocol import Job


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["vmamba_pico", None])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 1}, "in_chans is 1, but images are read as RGB, grey ones too; leave it out"),
        ({"in_chans": "3"}, "in_chans must be an integer"),
        ({"dim": 1}, "unknown option 'dim'; do you mean 'dims'?"),
        ({"dims": [10**9] * 4}, "dims must be at most 65536"),
    ],
)
def test_options_of_the_model(task: str, model: str | None, options: dict[str, object], message: str) -> None:
    job = Job(data="nowhere", model=model, model_options=options)
    chosen = task_class(task)
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        chosen(job, chosen.Options())
    assert "\n" not in str(caught.value)
