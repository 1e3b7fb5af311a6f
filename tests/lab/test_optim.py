import pytest
import torch

from cogedit.lab.optim import Muon, WeightAverage, learning_rate_factor, orthogonalize


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16)])
def test_orthogonalize_brings_singular_values_close_to_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert 0.6 < values.min() < values.max() < 1.35


def test_muon_fits_a_convolution():
    torch.manual_seed(0)
    target, model = torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(4, 8, 3)
    model.bias.requires_grad_(False).copy_(target.bias.detach())
    optimizer = Muon([model.weight], lr=0.02)
    losses = []
    for _ in range(60):
        x = torch.randn(8, 4, 6, 6)
        loss = (model(x) - target(x)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_muon_leaves_parameters_without_a_gradient_alone():
    param = torch.nn.Parameter(torch.ones(4, 4))
    Muon([param], lr=0.1, weight_decay=0.5).step()
    assert (param == 1).all()


def test_the_learning_rate_rises_stays_and_falls():
    factors = [
        learning_rate_factor(step, 100, warmup_steps=10, decay_fraction=0.2) for step in range(100)
    ]
    assert factors[0] == 0.1
    assert factors[9:80] == [1.0] * 71
    assert factors[80] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.05)
    assert learning_rate_factor(200, 100, warmup_steps=10, decay_fraction=0.2) == 0.0


def test_the_average_follows_the_weights_and_can_be_saved():
    module = torch.nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
    for _ in range(200):
        average.update(module)
    copy = WeightAverage(torch.nn.Linear(2, 2), decay=0.9)
    copy.load_state_dict(average.state_dict())
    other = torch.nn.Linear(2, 2)
    copy.copy_to(other)
    assert copy.num_updates == 200
    torch.testing.assert_close(other.weight, torch.full((2, 2), 3.0))
    with pytest.raises(TypeError):
        copy.load_state_dict({"num_updates": None, "average": {}})
