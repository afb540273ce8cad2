from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from dropkey_cli.tasks.classification import Classification
from dropkey_cli.tasks.predicting import PredictingModule


class Linear(PredictingModule):
    """Shares of the classes by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        assert self.network is not None
        logits: Tensor = self.network(images)
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


def test_without_samples_or_features_a_prediction_is_its_probabilities() -> None:
    model, batch = Linear(), {"image": torch.randn(2, 3)}
    given: Any = batch
    outputs = model.predict_step(given, 0)
    assert list(outputs) == ["probability"]
    assert torch.equal(outputs["probability"], model(batch["image"]).softmax(-1))
    assert torch.equal(model.logits(given), model(batch["image"]))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_logits_of_scores_turn_into_them_again(loss: Literal["cross_entropy", "bce"]) -> None:
    model = Classification(loss=loss)
    scores = torch.rand(4, 10).softmax(-1)
    torch.testing.assert_close(model.scores(model.logits_of(scores.double())), scores)
    assert model.logits_of(torch.tensor([[0.0, 1.0]])).isfinite().all()  # a class that no sample gives any chance
