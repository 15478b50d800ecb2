"""A vision-language model as the judge of a clip: how well the effect is carried out, and what it spoils.

`settings` what it is asked with, `rubric` the instructions, `frames` and `requests` a clip as a question, `verdict` and
`parse` the answer, `openai_backend` asks a server, `ray_jobs.judge` engines on a cluster,
`local_backend` a model in this process, `scoring` makes scores of it.
"""

from eval.judge.base import Answer, Judge, JudgeItem
from eval.judge.scoring import open_judge, score_with_judge
from eval.judge.settings import JudgeSettings
from eval.judge.verdict import Verdict

__all__ = ["Answer", "Judge", "JudgeItem", "JudgeSettings", "Verdict", "open_judge", "score_with_judge"]
