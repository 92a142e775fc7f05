"""`score --chat`: items as conversations, in the format of the checkpoint's own chat template.

The context is the user's message and the choice is the reply. What stands before the choice is what the template writes of
that conversation, up to the first character of the reply: the text after which the model learned to answer, delimiter
included. It is what lm-evaluation-harness's --apply_chat_template scores, wherever a reply begins right after the template's
generation prompt (ChatML, Gemma, Llama 3). Elsewhere the harness leaves out what the template puts between the two: the space
of Llama 2, Mistral and the checkpoints trained here, gpt-oss's final channel, the empty thought of Qwen3.

A template is a program that comes with the checkpoint. transformers' sandbox keeps it from files and from Python's own objects,
but not from looping or from filling the memory: it runs in a process of its own, with limits of both. It sees one fixed date,
so that scores do not change from day to day. Cost: that process, started once for a tokenizer without cached plans.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError
from evalengine.untrusted import printable, reason

if TYPE_CHECKING:
    from evalengine.benchmarks import ItemSet

SECONDS = 30  # of processor time, for CHUNK contexts
MEMORY = 1 << 30  # bytes beyond what the process takes by itself
CHUNK = 1000
REPLY = "evalengine-reply-7f3b"  # stands for the choice: no template writes it, and none has a reason to change it
TODAY = datetime.datetime(2024, 7, 26)  # which Llama 3's template states where it does not know the date


class ChatFormat:
    """A tokenizer's chat template, and the process that runs it. Raises UserError where there is none."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name = name
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()  # plans are made in two threads
        try:
            template = tokenizer.get_chat_template()
        except Exception:  # none at all, or several of which none is the default
            raise UserError(
                f"{name}: its tokenizer has no chat template to ask it with: score it without --chat, or copy its"
                " chat_template.jinja into its folder"
            ) from None
        setup = {"seconds": SECONDS, "template": template, "special": tokenizer.special_tokens_map}
        self._setup = json.dumps(setup)

    def conversations(self, items: ItemSet) -> tuple[ItemSet, str]:
        """The items with each context as the template writes it, up to the reply; and what an empty context becomes.

        Raises UserError where the template cannot render one.
        """
        from evalengine.benchmarks.definition import DELIMITER

        contexts = list(dict.fromkeys(["", *(context for item in items.items for context in item.contexts)]))
        before: dict[str, str] = {}
        for at in range(0, len(contexts), CHUNK):
            chunk = contexts[at : at + CHUNK]
            with self._one_at_a_time:
                before.update(zip(chunk, self._before_replies(chunk), strict=True))
        asked = [
            item._replace(
                contexts=tuple(before[context] for context in item.contexts),
                continuations=tuple(text.removeprefix(DELIMITER) for text in item.continuations),
            )
            for item in items.items
        ]
        return items._replace(items=asked), before[""]

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.communicate()
            self._process = None

    def _before_replies(self, contexts: list[str]) -> list[str]:
        process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        answer: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):  # it has ended
            process.stdin.write(json.dumps(contexts) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        if "before" in answer:
            return list(answer["before"])
        self.close()
        why = printable(answer["error"]) if answer else f"it ended with code {process.returncode}"
        if process.returncode == -signal.SIGXCPU:
            why = f"it did not end within {SECONDS} s of processor time"
        raise UserError(
            f"{self._name}: its chat template cannot be used ({why}): mend it, or score without --chat"
        )

    def _started(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evalengine.plan.chat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the command's own
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(self._setup + "\n")
        return process


def serve() -> None:
    """The process: reads the template, then lists of contexts, one a line; writes what stands before their replies."""
    from transformers.utils import chat_template_utils

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Then:
            return cls.fromtimestamp(TODAY.timestamp(), tz)

    setattr(chat_template_utils, "datetime", Then)  # noqa: B010 - what strftime_now calls
    setup = json.loads(sys.stdin.readline())
    seconds = setup.pop("seconds")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # no /proc on macOS, whose memory is not limited
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        limit = int(time.process_time()) + seconds + 1
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
        try:
            answer: dict[str, Any] = {
                "before": [before_reply(context, **setup) for context in json.loads(line)]
            }
        except Exception as error:
            answer = {"error": reason(error)}
        print(json.dumps(answer), flush=True)


def before_reply(context: str, template: str, special: dict[str, Any]) -> str:
    """What a template writes before the reply to a message. Raises ValueError, or whatever the template does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": "user", "content": context}, {"role": "assistant", "content": REPLY}]
    rendered: Any = render_jinja_template(conversations=[chat], chat_template=template, **special)
    before, found, _ = rendered[0][0].rpartition(REPLY)
    if not found:
        raise ValueError("it does not write the assistant's reply")
    if context.strip() not in before:
        raise ValueError("it leaves the user's message out, or changes it")
    return str(before)


if __name__ == "__main__":
    serve()
