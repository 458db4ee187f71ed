"""Names of networks, and the networks and students that they mean."""
import logging
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from wsld_plugin.checkpoints import student_checkpoint
from wsld_plugin.models import NetworkError, build_network
from wsld_plugin.models.building import last_layers
from wsld_plugin.models.sources import classifier, find_network, zoo_name

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def build(model):
    return MODELS.build(dict(model, _scope_='mmpretrain'))


def outputs(network, size, flip=False):
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator())
    with torch.no_grad():
        return network.eval()(pictures.flip(1) if flip else pictures)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder for own code, `own.py`, which is imported anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'own', raising=False)
    return tmp_path


@pytest.mark.parametrize('name, model', [
    ('resnet18', 'resnet18_8xb32_in1k'),
    ('ResNet50', 'resnet50_8xb32_in1k'),
    ('resnet50_8xb16', 'resnet50_8xb16_cifar10'),
    ('mobilenet-v3-small', 'mobilenet-v3-small_8xb128_in1k'),
    ('efficientnet-b0', 'efficientnet-b0_3rdparty_8xb32_in1k'),
    ('convnext-tiny', 'convnext-tiny_32xb128_in1k'),
    ('vit-base', 'vit-base-p16_32xb128-mae_in1k'),
    ('swin-tiny_3rdparty', 'swin-tiny_3rdparty_in1k')])
def test_a_beginning_means_the_plainest(name, model):
    assert zoo_name(name) == model


@pytest.mark.parametrize('spec, said', [
    ('mobilenet-v3', 'similar: mobilenet-v3-large, mobilenet-v3-small'),
    ('timm:resnet50x', 'timm has no classifier .*similar: resnet50x'),
    ('torchvision:resnet19', 'similar: resnet18'),
    ('torchvision:fcn_resnet50', 'torchvision has no classifier'),
    ('python:nomodule.f', 'PYTHONPATH must name the folder'),
    ('python:os.path.sep', 'is a str, not a function'),
    ('no.py', 'cannot read the config no.py: no such file'),
    ('no.pth', 'no.pth is missing'),
    ('resnet18@no.pth', 'there is no file no.pth'),
    ('wrn-16-2@pretrained', 'no published weights')])
def test_a_wrong_name_is_refused_in_one_line(spec, said):
    with pytest.raises(NetworkError, match=said) as error:
        find_network(spec)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('spec, said', [
    ('timm:resnet10t', r'fetch model.safetensors of timm/\S+ .*t@FILE'),
    ('torchvision:squeezenet1_1', r'put it at .*squeezenet1_1-\w+.pth'),
    ('resnet18', r'put it at .*resnet18_8xb32_in1k_\w+-\w+.pth')])
def test_missing_weights_say_which_file_goes_where(spec, said, tmp_path,
                                                   monkeypatch):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    # Nothing listens there; urllib keeps the proxies of its first call.
    monkeypatch.setattr('urllib.request._opener', None)
    for name in ('http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    source = find_network(spec)
    with pytest.raises(NetworkError, match=said) as error:
        build_network(source.network, 5, source.weights)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('spec, size', [
    ('timm:resnet10t@none', 40), ('timm:vit_tiny_patch16_224@none', 224),
    ('torchvision:squeezenet1_1@none', 40),
    ('torchvision:mobilenet_v3_small@none', 40),
    ('torchvision:googlenet@none', 64), ('resnet18@none', 40),
    ('wrn-16-2', 32), ('conformer-tiny@none', 64)])
def test_networks_of_all_libraries(spec, size, tmp_path):
    source = find_network(spec)
    assert source.weights is source.classes is None
    network = build_network(source.network, 3)
    assert outputs(network, size).shape == (2, 3) and not network.is_init
    assert {len(one.weight) for one in last_layers(network).values()} == {3}
    assert network.train()(torch.rand(2, 3, size, size)).shape == (2, 3)

    # Its own file gives the same network, or all but the last layer.
    if spec == 'torchvision:googlenet@none':
        return
    torch.save(network.network.state_dict(), tmp_path / 'own.pth')
    again, tuned = (build_network(source.network, count,
                                  str(tmp_path / 'own.pth'))
                    for count in (3, 4))
    assert again.is_init and not tuned.is_init
    # As a Runner does before it trains: what was loaded stays.
    tuned.init_weights()
    assert torch.equal(outputs(again, size), outputs(network, size))
    assert outputs(tuned, size).shape == (2, 4)
    for key, value in tuned.state_dict().items():
        if value.shape == network.state_dict()[key].shape:
            assert torch.equal(value, network.state_dict()[key]), key


def test_another_networks_file_is_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(build_network('timm:resnet10t', 3).network.state_dict(), path)
    with pytest.raises(NetworkError, match='does not fit'):
        build_network('timm:resnet18', 3, str(path))
    path.with_suffix('.safetensors').write_bytes(b'nothing')
    with pytest.raises(NetworkError, match='damaged'):
        build_network(
            'timm:resnet18', 3, str(path.with_suffix('.safetensors')))


def test_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip('transformers')
    from safetensors.torch import load_file
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
        id2label={0: 'cat', 1: 'dog', 2: 'owl'})
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(
        size=dict(height=40, width=40), image_mean=[.5, .4, .3],
        image_std=[.2, .2, .1]).save_pretrained(tmp_path)
    source = find_network(f'hf:{tmp_path}')
    assert source[1:6] == ('pretrained', ('cat', 'dog', 'owl'), 40,
                           (127.5, 102, 76.5), (51, 51, 25.5))
    file = tmp_path / 'model.safetensors'
    for weights in ('pretrained', str(file)):
        for count in (3, 7):
            network = build_network(source.network, count, weights)
            assert network.is_init == (count == 3)
            assert outputs(network, 40).shape == (2, count)
            for key, value in load_file(file).items():
                mine = network.network.state_dict()[key]
                assert mine.shape != value.shape or torch.equal(mine, value)


def test_own_code_says_its_preprocessing(own):
    (own / 'own.py').write_text(
        'from torch import nn\n'
        'def plain():\n'
        '    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(),\n'
        '                         nn.Linear(8 * 36, 6))\n'
        'def counted(num_classes):\n'
        '    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n'
        'counted.preprocessing = dict(size=8, mean=[1, 2, 3], std=[4, 5, 6])\n'
        'counted.classes = ["a", "b"]\n'
        'preprocessing = dict(size=9)\n')
    assert find_network('python:own.counted')[1:6] == (
        'pretrained', ('a', 'b'), 8, (1, 2, 3), (4, 5, 6))
    assert find_network('python:own.plain')[1:6] == (
        'pretrained', None, 9, *IMAGENET)
    for name, count, known in (('counted', 2, True), ('plain', 6, True),
                               ('plain', 4, False)):
        network = build_network(f'python:own.{name}', count, 'pretrained')
        assert outputs(network, 8).shape == (2, count)
        assert network.is_init == known


def test_bgr_networks_get_bgr():
    source = find_network('regnetx-400mf@none')
    assert source.mean == IMAGENET[0]
    bgr = build_network(source.network, 3)
    assert torch.equal(outputs(bgr, 40), outputs(bgr.network, 40, flip=True))
    # CIFAR's pictures are RGB though nobody turned them.
    cifar = find_network('resnet18_8xb16_cifar10@none')
    assert cifar.network['data_preprocessor']['to_rgb']
    assert cifar.mean == (125.307, 122.961, 113.8575) and cifar.size == 32
    # Whose crop is a kind of its own.
    assert find_network('efficientnet-b1@none').size == 240


@pytest.mark.parametrize('said, rgb, mean', [
    # What mmpretrain does if nothing is said, and old pipelines' own step.
    (dict(mean=[1, 2, 3], std=[4, 5, 6]), False, (3, 2, 1)),
    (dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True), True, (1, 2, 3)),
    ({}, False, (0, 0, 0)),
    (dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6]), True, (1, 2, 3))])
def test_a_config_says_what_pixels_it_takes(said, rgb, mean, own):
    (own / 'own.py').touch()
    model = dict(classifier('wrn-16-2', 2, *IMAGENET), data_preprocessor=said)
    steps = [dict(type='CenterCrop', crop_size=40)]
    if 'type' in said:
        steps.append(model.pop('data_preprocessor'))
    Config(dict(
        model=model, custom_imports=dict(imports='own'), test_dataloader=dict(
            dataset=dict(pipeline=steps)))).dump(own / 'net.py')
    source = find_network(f'{own}/net.py@{own}/net.py')
    assert source.network['data_preprocessor']['to_rgb'] == rgb
    assert source.mean == mean and source.size == 40
    assert source.imports == ('own', )


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(NetworkError, match="the extra 'distil' has timm"):
        find_network('timm:resnet10t')
    model = classifier('wrn-16-2', 2, *IMAGENET)
    config = Config(dict(model=model, custom_imports=dict(imports='gone')))
    torch.save(dict(state_dict=build(model).state_dict(),
                    meta=dict(cfg=config.pretty_text)), tmp_path / 'run.pth')
    with pytest.raises(NetworkError, match=r'of its own: .*gone') as told:
        find_network(str(tmp_path / 'run.pth'))
    assert '\n' not in str(told.value)


def test_heads_that_distil_are_tuned():
    source = find_network('levit-128s@none')
    network = build_network(source.network, 3).train()
    seen = []
    for layer in last_layers(network, 3).values():
        layer.register_forward_hook(lambda *args: seen.append(args[2]))
    logits = network(torch.rand(2, 3, 224, 224))
    assert torch.equal(logits, (seen[0] + seen[1]) / 2)
    assert network.network.head.head.bn.training


@pytest.mark.parametrize('name', [
    'resnet18', 'mobilenet-v3-small', 'mobilenet-v2', 'shufflenet-v2',
    'efficientnet-b0', 'regnetx-400mf', 'deit-tiny', 'swin-tiny',
    'mobileone-s0', 'edgenext-xxsmall', 'levit-128s', 'efficientformer-l1',
    'wrn-16-2', 'mobilevit-xxsmall', 'repvgg-a0', 'vig-tiny'])
def test_students_losses_get_logits_and_labels(name, caplog):
    caplog.set_level(logging.ERROR)
    model = build(classifier(name, 3, *IMAGENET))
    seen = {}
    model.head.loss_module.register_forward_hook(
        lambda _, inputs, output: seen.update(scores=inputs[0],
                                              labels=inputs[1]))
    # These take pictures of their own size alone.
    size = 224 if name in ('swin-tiny', 'levit-128s', 'efficientformer-l1',
                           'vig-tiny') else 64
    data = model.data_preprocessor(dict(
        inputs=[torch.randint(256, (3, size, size)).byte() for _ in range(4)],
        data_samples=[DataSample().set_gt_label(i % 3) for i in range(4)]),
        training=True)
    losses = model(**data, mode='loss')
    assert seen['labels'].tolist() == [0, 1, 2, 0]
    assert torch.allclose(losses['loss'], nn.functional.cross_entropy(
        seen['scores'], seen['labels']))


@pytest.mark.parametrize('name', ['conformer-tiny', 'timm:resnet10t'])
def test_what_cannot_learn_is_refused(name):
    with pytest.raises(NetworkError, match=r'puts out|mmpretrain'):
        classifier(name, 3, *IMAGENET)


def test_a_run_names_its_network(tmp_path):
    config = classifier('wrn-16-2', 2, (1, 2, 3), (4, 5, 6))
    model = build(config)
    test = dict(dataset=dict(type='CustomDataset', pipeline=[
        dict(type='CenterCrop', crop_size=32)]))
    file = tmp_path / 'x_20260101-01234567.pth'
    torch.save(student_checkpoint(dict(
        state_dict=model.state_dict(), meta=dict(
            dataset_meta=dict(classes=['cat', 'dog']),
            cfg=f'model = {config!r}\ntest_dataloader = {test!r}\n')),
        'x.pth'), file)
    for spec in (str(file), str(tmp_path)):
        source = find_network(spec)
        assert source[1:6] == (str(file), ('cat', 'dog'), 32, (1, 2, 3),
                               (4, 5, 6))
        network = build_network(source.network, 2, source.weights)
        assert network.is_init
        assert torch.equal(outputs(network, 32), outputs(model, 32))
    assert 'frozen_stages' not in classifier('vit-small', 2, *IMAGENET)[
        'backbone']
    again = classifier(f'{file}@pretrained', 2, (1, 2, 3), (4, 5, 6))
    assert again['init_cfg'] == dict(type='Pretrained', checkpoint=str(file))
    assert 'init_cfg' not in classifier(str(file), 2, *IMAGENET)
