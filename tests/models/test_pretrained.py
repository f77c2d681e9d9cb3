"""Weights in torchvision's layout."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import helpers
from tests.helpers import make_config, make_dataset, make_weights
from tsla_jax.errors import InputError
from tsla_jax.models import pretrained
from tsla_jax.training.train import train_and_evaluate

make_model = functools.cache(helpers.make_model)  # no test changes one


def test_keys_are_torchvisions():
  _, variables = make_model()
  keys = {k for k in make_weights(variables) if 'num_batches' not in k}
  assert len(keys) == 102
  assert {
    'conv1.weight',
    'bn1.running_mean',
    'layer1.0.conv1.weight',
    'layer2.0.downsample.0.weight',
    'layer2.0.downsample.1.running_var',
    'layer4.1.bn2.bias',
    'fc.weight',
    'fc.bias',
  } <= keys


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50'])
def test_all_is_loaded_and_transposed(name):
  _, variables = make_model(name)
  weights = make_weights(variables)
  new, report = pretrained.load_variables(variables, weights)
  assert not report.new and not report.unused
  assert len(report.loaded) == len(jax.tree.leaves(variables))
  kernel = new['params']['layer2_0']['downsample_conv']['kernel']
  expected = weights['layer2.0.downsample.0.weight']
  assert kernel[0, 0, 3, 2] == expected[2, 3, 0, 0]
  np.testing.assert_array_equal(
    new['params']['head']['kernel'], weights['fc.weight'].T
  )
  assert jax.tree.structure(new) == jax.tree.structure(variables)


def test_head_of_other_classes_is_new():
  _, variables = make_model(classes=5)
  weights = make_weights(make_model(classes=7)[1])
  new, report = pretrained.load_variables(variables, weights)
  assert report.new == ('head/bias', 'head/kernel')
  assert report.unused == ('fc.bias', 'fc.weight')
  assert '2 new (head/bias, head/kernel)' in str(report)
  jax.tree.map(
    np.testing.assert_array_equal,
    new['params']['head'],
    variables['params']['head'],
  )
  without = {k: v for k, v in weights.items() if not k.startswith('fc')}
  assert pretrained.load_variables(variables, without)[1].unused == ()


def test_weights_of_another_architecture_are_refused_by_name():
  _, variables = make_model('resnet18')
  with pytest.raises(InputError, match=r"no 'layer1\.2\.bn1\."):
    pretrained.load_variables(
      make_model('resnet34')[1], make_weights(variables)
    )
  with pytest.raises(InputError, match=r"no place for 'layer1\.2\."):
    pretrained.load_variables(
      variables, make_weights(make_model('resnet34')[1])
    )
  with pytest.raises(InputError, match=r"'conv1\.weight' has shape .*7, 7"):
    pretrained.load_variables(
      make_model('resnet18', stem='cifar')[1], make_weights(variables)
    )


def torch_blocks(torch, weights, x, bottleneck=False):
  """A torchvision ResNet in evaluation mode, from its keys alone."""
  functional = torch.nn.functional
  w = {k: torch.tensor(np.asarray(v)) for k, v in weights.items()}

  def conv(x, name, stride=1):
    kernel = w[f'{name}.weight']
    padding = kernel.shape[-1] // 2
    return functional.conv2d(x, kernel, stride=stride, padding=padding)

  def norm(x, name):
    stats = (w[f'{name}.running_mean'], w[f'{name}.running_var'])
    return functional.batch_norm(
      x, *stats, w[f'{name}.weight'], w[f'{name}.bias']
    )

  x = torch.relu(norm(conv(x, 'conv1', 2), 'bn1'))
  x = functional.max_pool2d(x, 3, 2, 1)
  for stage in range(1, 5):
    index = 0
    while f'layer{stage}.{index}.conv1.weight' in w:
      name = f'layer{stage}.{index}'
      stride = 2 if stage > 1 and index == 0 else 1
      if bottleneck:
        y = torch.relu(norm(conv(x, f'{name}.conv1'), f'{name}.bn1'))
        y = torch.relu(norm(conv(y, f'{name}.conv2', stride), f'{name}.bn2'))
        y = norm(conv(y, f'{name}.conv3'), f'{name}.bn3')
      else:
        y = torch.relu(norm(conv(x, f'{name}.conv1', stride), f'{name}.bn1'))
        y = norm(conv(y, f'{name}.conv2'), f'{name}.bn2')
      if f'{name}.downsample.0.weight' in w:
        x = norm(
          conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1'
        )
      x = torch.relu(x + y)
      yield f'layer{stage}_{index}', x
      index += 1
  features = x.mean((2, 3))
  yield 'features', features
  yield 'logits', features @ w['fc.weight'].T + w['fc.bias']


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50'])
def test_parity_with_torch_block_by_block(name):
  torch = pytest.importorskip('torch')
  model, variables = make_model(name, width=8)
  weights = make_weights(variables)
  variables, _ = pretrained.load_variables(variables, weights)
  x = np.random.default_rng(1).normal(size=(2, 65, 65, 3)).astype(np.float32)
  (logits, features), state = model.apply(
    variables,
    x,
    train=False,
    capture_intermediates=lambda module, _: 'Block' in type(module).__name__,
    mutable=['intermediates'],
  )
  got = {k: v['__call__'][0] for k, v in state['intermediates'].items()}
  got |= {'features': features, 'logits': logits}
  seen = 0
  with torch.no_grad():
    z = torch.tensor(x.transpose(0, 3, 1, 2))
    for block, want in torch_blocks(torch, weights, z, name == 'resnet50'):
      want = want.numpy()
      if want.ndim == 4:
        want = want.transpose(0, 2, 3, 1)
      scale = np.abs(want).max()
      np.testing.assert_allclose(got[block] / scale, want / scale, atol=1e-4)
      seen += 1
  assert seen == {'resnet18': 8, 'resnet34': 16, 'resnet50': 16}[name] + 2


def test_files(tmp_path):
  _, variables = make_model()
  weights = make_weights(variables)
  half = {k: v.astype(np.float16) for k, v in weights.items()}
  save_file(half, tmp_path / 'w.safetensors')
  read = pretrained.read_weights(str(tmp_path / 'w.safetensors'))
  new, _ = pretrained.load_variables(variables, read)
  for leaf in jax.tree.leaves(new):
    assert leaf.dtype == np.float32
  np.testing.assert_allclose(
    new['params']['head']['bias'], weights['fc.bias'], atol=1e-3
  )
  (tmp_path / 'broken.safetensors').write_text('no')
  with pytest.raises(InputError, match=r'broken\.safetensors.* is no file'):
    pretrained.read_weights(str(tmp_path / 'broken.safetensors'))
  with pytest.raises(InputError, match="no file 'gone.safetensors'"):
    pretrained.read_weights('gone.safetensors')


def test_hub_id_offline_is_one_line(monkeypatch):
  import huggingface_hub

  def offline(*args, **kwargs):
    raise ConnectionError('no network\nand more lines')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
  with pytest.raises(InputError, match=r'cannot be downloaded \(no net') as e:
    pretrained.read_weights('timm/resnet18.tv_in1k')
  assert '\n' not in str(e.value)


def test_hub_files_are_pinned(tmp_path, monkeypatch):
  """By revision and, of what the configs use, by digest."""
  import huggingface_hub

  asked = []
  (tmp_path / 'model.safetensors').write_bytes(b'others')

  def download(repository, name, revision):
    asked.append((repository, revision))
    return tmp_path / name

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  with pytest.raises(InputError, match='its SHA-256 is another'):
    pretrained.read_weights('timm/resnet18.tv_in1k')
  save_file({'fc.bias': np.ones(3)}, tmp_path / 'model.safetensors')
  weights = pretrained.read_weights('some/net@abc123')
  assert weights['fc.bias'].tolist() == [1, 1, 1]
  (repository, revision), other = asked
  assert repository == 'timm/resnet18.tv_in1k' and len(revision) == 40
  assert other == ('some/net', 'abc123')


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('conv1.weight', np.nan, 'conv1.weight.* not finite'),
    ('bn1.running_var', -1.0, 'bn1.running_var.* negative'),
  ],
)
def test_weights_that_no_net_has_are_refused(tmp_path, key, value, message):
  """Training would diverge, and advise a lower learning rate."""
  weights = make_weights(make_model()[1])
  weights[key].flat[0] = value
  save_file(weights, tmp_path / 'w.safetensors')
  with pytest.raises(InputError, match=message):
    pretrained.read_weights(str(tmp_path / 'w.safetensors'))


def test_pth_files(tmp_path):
  torch = pytest.importorskip('torch')
  weights = make_weights(make_model()[1])
  tensors = {k: torch.tensor(np.asarray(v)) for k, v in weights.items()}
  torch.save(tensors, tmp_path / 'w.pth')
  read = pretrained.read_weights(str(tmp_path / 'w.pth'))
  for key, value in weights.items():
    np.testing.assert_array_equal(read[key], value)


def test_training_starts_from_the_weights(tmp_path, capsys):
  """With learning rates of 0 it stays there, and the restart needs no file."""
  dataset = make_dataset()
  _, variables = make_model('resnet8', 7, stem='cifar')
  weights = make_weights(variables)
  # Of grey images: the programs are those of many other tests.
  weights['conv1.weight'] = weights['conv1.weight'][:, :1].copy()
  save_file(weights, tmp_path / 'w.safetensors')
  config = make_config(
    num_epochs=3,
    **{
      'model.pretrained': str(tmp_path / 'w.safetensors'),
      'optimizer.learning_rate.backbone': 0.0,
    },
  )
  train_and_evaluate(config, tmp_path / 'run', dataset)
  assert '2 new (head/bias, head/kernel)' in capsys.readouterr().out
  from tsla_jax.training.load import load_model

  _, trained = load_model(tmp_path / 'run', best=False)
  np.testing.assert_array_equal(
    trained['params']['layer1_0']['conv1']['kernel'],
    weights['layer1.0.conv1.weight'].transpose(2, 3, 1, 0),
  )
  wide = config.copy_and_resolve_references()
  wide.model.width = 8
  with pytest.raises(InputError, match='does not fit'):
    train_and_evaluate(wide, tmp_path / 'wide', dataset)
  assert not (tmp_path / 'wide').exists()
  (tmp_path / 'w.safetensors').unlink()
  config.num_epochs = 4
  train_and_evaluate(config, tmp_path / 'run', dataset)


SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'weights'


@pytest.mark.skipif(not SHARED.is_dir(), reason='no real weights at hand')
def test_real_weights():
  _, variables = make_model('resnet18', width=64, classes=40, size=32)
  weights = pretrained.read_weights(
    str(SHARED / 'resnet18_backbone.safetensors')
  )
  _, report = pretrained.load_variables(variables, weights)
  assert len(report.loaded) == 100 and not report.unused
  assert report.new == ('head/bias', 'head/kernel')
