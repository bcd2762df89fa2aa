"""EMA: an exponential moving average of the weights, evaluated and kept (Polyak & Juditsky 1992).

Cost: about 1 % of a step and one more copy of the weights.
"""

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fb3.models.scorer import Scorer
from fb3.recipe.tricks import Ema
from fb3.training.tricks.average import Average


class EMA(Average):
    """average ← decay · average + (1 − decay) · weights after each step; the first step's weights start it.

    Args:
        settings: decay and start.
        scorer: the model on its device.
    """

    def __init__(self, settings: Ema, scorer: Scorer) -> None:
        average = AveragedModel(scorer, multi_avg_fn=get_ema_multi_avg_fn(settings.decay))
        super().__init__(average, settings.start, every=1)
