"""SWA: the plain mean of the weights at several moments (Izmailov et al. 2018, arXiv:1803.05407).

Cost: next to nothing, and one more copy of the weights. Its own schedule is schedule.floor.
"""

from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import Swa
from fb3.training.tricks.average import Average


class SWA(Average):
    """The mean of the weights after every n-th step from a share of the run on.

    Args:
        settings: start and every_steps.
        scorer: the model on its device.
    """

    def __init__(self, settings: Swa, scorer: Scorer) -> None:
        average = AveragedModel(scorer, multi_avg_fn=get_swa_multi_avg_fn())
        super().__init__(average, settings.start, settings.every_steps)
