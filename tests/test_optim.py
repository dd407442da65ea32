"Slow checks of levels: torch's own cases for its optimizers, and networks of torchvision and timm."

from copy import deepcopy
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from nested_learning.model.levels import assign_levels, level_table
from nested_learning.optim.nested import NestedOptimizer, check_inner_options

pytestmark = pytest.mark.slow
STEPS = 12  # 12, 4 and 3 moves at periods 1, 3 and 4


def optimizer_cases():
    "Name, optimizer class, options and type of the weights, for each configuration that torch tests."
    module = pytest.importorskip('torch.testing._internal.common_optimizers')
    for info in module.optim_db:
        if info.step_requires_closure:
            continue
        dtypes = [torch.float32, torch.float64]
        if getattr(info, 'supports_complex', False):
            dtypes.append(torch.complex64)
        paths = [{}] + [{name: True} for name in ('foreach', 'fused') if name in info.supported_impls]
        for dtype, path, given in product(dtypes, paths, info.optim_inputs_func(device='cpu')):
            name = f'{info.optim_cls.__name__} {dtype} {path} {given.desc}'
            yield name, info, {**given.kwargs, **path}, dtype


def weights_for(info, dtype):
    "Weights of the shapes that an optimizer takes."
    g = torch.Generator().manual_seed(0)
    matrices = info.only_supports_sparse_grads or info.optim_cls.__name__ == 'Muon'
    shapes = ((6, 2), (4, 3)) if matrices else ((6, 2), (3,), (2, 2, 2), ())
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=dtype)) for shape in shapes]


def gradients_at(step, params, sparse):
    "Gradients of one step; sparse ones have half of the rows, and another half each time."
    g = torch.Generator().manual_seed(step)
    grads = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in params]
    if not sparse:
        return grads
    sparse_grads = []
    for x in grads:
        rows = torch.arange(step % 2, len(x), 2)
        sparse_grads.append(torch.sparse_coo_tensor(rows[None], x[rows], x.shape, check_invariants=True))
    return sparse_grads


def reduce_gradients(gathered, period, dtype):
    "Give the mean of the gradients of a chunk, added up as a level does it."
    wide = torch.promote_types(dtype, torch.float32)
    reduced = []
    for grads in zip(*gathered):
        total = grads[0].to(wide)
        if not total.is_sparse:
            total = torch.zeros_like(total) + total
        for grad in grads[1:]:
            total = total + grad.to(wide)
        total = total.coalesce() if total.is_sparse else total
        reduced.append((total / period).to(dtype))
    return reduced


def train_plain(info, options, dtype, period):
    "Step an optimizer of torch with the reduced gradient of every chunk; give weights, state, and any error."
    params = weights_for(info, dtype)
    try:
        optimizer = info.optim_cls(params, **options)
        for start in range(0, STEPS, period):
            chunk = range(start, start + period)
            grads = [gradients_at(step, params, info.only_supports_sparse_grads) for step in chunk]
            reduced = grads[0] if period == 1 else reduce_gradients(grads, period, dtype)
            for p, grad in zip(params, reduced):
                p.grad = grad
            optimizer.step()
    except Exception as e:
        return None, None, e
    return params, optimizer.state, None


def train_nested(info, options, dtype, period):
    "The same by `NestedOptimizer`, which gathers the gradients itself."
    params = weights_for(info, dtype)
    if 'lr' not in options:
        options = {**options, 'lr': info.optim_cls(params).defaults['lr']}
    try:
        optimizer = NestedOptimizer([dict(params=params, period=period)], inner=info.optim_cls, **options)
        for step in range(STEPS):
            for p, grad in zip(params, gradients_at(step, params, info.only_supports_sparse_grads)):
                p.grad = grad
            optimizer.step()
    except Exception as e:
        return None, None, e
    return params, optimizer.inner[0].state, None


def same_values(left, right):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize('period', [1, 3, 4])
def test_optimizers_of_torch(period):
    "Each configuration in which torch tests its optimizers moves a level as it does by itself, bit for bit."
    same, refused, wrong = 0, 0, []
    for name, info, options, dtype in optimizer_cases():
        theirs, their_state, their_error = train_plain(info, deepcopy(options), dtype, period)
        ours, our_state, our_error = train_nested(info, deepcopy(options), dtype, period)
        if type(their_error) is not type(our_error):
            wrong.append(f'{name}: torch {their_error!r}, nested {our_error!r}')
        elif their_error:
            refused += 1
        elif not same_values([p.detach() for p in theirs], [p.detach() for p in ours]):
            wrong.append(f'{name}: other weights')
        elif not all(
            same_values(their_state[p].values(), our_state[q].values()) for p, q in zip(theirs, ours)
        ):
            wrong.append(f'{name}: another state')
        else:
            same += 1
    print(f'period {period}: {same} configurations alike, {refused} refused by both, {len(wrong)} differ')
    assert not wrong, '\n'.join(wrong)
    assert same > 100


def test_errors_of_torch():
    "Whatever torch's optimizers refuse when they are made, a level refuses too."
    module = pytest.importorskip('torch.testing._internal.common_optimizers')
    refused = 0
    for info in module.optim_db:
        for case in info.optim_error_inputs_func(device='cpu', dtype=torch.float32):
            given = case.optimizer_error_input
            if case.error_on is not module.OptimizerErrorEnum.CONSTRUCTION_ERROR:
                continue
            groups = given.params
            with pytest.raises((ValueError, TypeError, RuntimeError)):
                NestedOptimizer(groups, inner=info.optim_cls, **given.kwargs)
            refused += 1
    print(f'{refused} configurations refused')
    assert refused > 20


def test_options_of_torch():
    "No configuration that torch takes is refused by the check of options."
    taken = 0
    for name, info, options, dtype in optimizer_cases():
        check_inner_options(info.optim_cls, options)
        taken += 1
    print(f'{taken} configurations taken')


TIMM = {  # name -> side of the images, options
    'cait_xxs24_224': (32, dict(img_size=32)),
    'convnext_atto': (64, {}),
    'convnextv2_atto': (64, {}),
    'deit_tiny_distilled_patch16_224': (32, dict(img_size=32)),
    'dla46_c': (64, {}),
    'edgenext_xx_small': (64, {}),
    'efficientnet_lite0': (64, {}),
    'fastvit_t8': (64, {}),
    'ghostnet_050': (64, {}),
    'gmlp_ti16_224': (32, dict(img_size=32)),
    'hrnet_w18_small': (64, {}),
    'lcnet_050': (64, {}),
    'levit_128s': (224, {}),
    'mixer_s32_224': (64, dict(img_size=64)),
    'mobilenetv2_050': (64, {}),
    'mobilenetv3_small_050': (64, {}),
    'mobileone_s0': (64, {}),
    'mobilevit_xxs': (64, {}),
    'poolformer_s12': (64, {}),
    'pvt_v2_b0': (64, {}),
    'regnetx_002': (64, {}),
    'regnety_002': (64, {}),
    'repvgg_a0': (64, {}),
    'resmlp_12_224': (32, dict(img_size=32)),
    'resnet18': (64, dict(norm_layer='groupnorm')),
    'resnetv2_50': (64, {}),
    'rexnet_100': (64, {}),
    'selecsls42': (64, {}),
    'seresnet18': (64, {}),
    'swin_tiny_patch4_window7_224': (56, dict(img_size=56)),
    'tinynet_e': (64, {}),
    'vit_tiny_patch16_224': (32, dict(img_size=32)),
    'xcit_nano_12_p16_224': (64, dict(img_size=64)),
}
TORCHVISION = {
    'convnext_tiny': (64, {}),
    'densenet121': (64, {}),
    'efficientnet_b0': (64, {}),
    'googlenet': (64, dict(aux_logits=False, init_weights=False)),
    'mnasnet0_5': (64, {}),
    'mobilenet_v2': (64, {}),
    'mobilenet_v3_small': (64, {}),
    'regnet_y_400mf': (64, {}),
    'resnet18': (64, dict(norm_layer=partial(nn.GroupNorm, 8))),
    'shufflenet_v2_x0_5': (64, {}),
    'squeezenet1_1': (64, {}),
    'swin_t': (64, {}),
}
ARCHITECTURES = [
    (library, name, *case)
    for library, cases in (('timm', TIMM), ('torchvision', TORCHVISION))
    for name, case in cases.items()
]


@pytest.mark.parametrize(
    'library, name, side, options', ARCHITECTURES, ids=lambda x: x if isinstance(x, str) else ''
)
def test_architectures(library, name, side, options):
    "Every parameter gets a level, the classifier the fastest one, and one step moves that one alone."
    if library == 'timm':
        model = pytest.importorskip('timm').create_model(name, pretrained=False, num_classes=7, **options)
    else:
        models = pytest.importorskip('torchvision.models')
        model = models.get_model(name, weights=None, num_classes=7, **options)
    torch.manual_seed(0)
    images = torch.randn(2, 3, side, side)
    groups = assign_levels(model, 'depth', (1, 5, 25), example=images, allow_batchnorm=True)
    levels = level_table(model, groups)
    assert len(levels) == sum(p.requires_grad for p in model.parameters())
    classifiers = [name for name, p in model.named_parameters() if p.shape[0] == 7 and p.ndim > 1]
    assert classifiers
    assert set(levels.level[levels.parameter.isin(classifiers)]) == {'fast'}
    before = {id(p): p.detach().clone() for p in model.parameters()}
    optimizer = NestedOptimizer(groups, lr=0.1, inner=torch.optim.SGD)
    answers = model(images)
    answers = answers[0] if isinstance(answers, tuple) else answers
    nn.functional.cross_entropy(answers, torch.tensor([0, 1])).backward()
    optimizer.step()
    assert optimizer.moved == ('fast',)
    moved = {
        group['name']: any(not torch.equal(p, before[id(p)]) for p in group['params']) for group in groups
    }
    assert moved == {'fast': True, 'medium': False, 'slow': False}
