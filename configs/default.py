"""All fields of a run with their meanings; other config files change a few.

A method follows the name of a config file: `--config=configs/digits.py:lsr`. It
is one of `:baseline`, `:lsr`, `:tsla`, `:tsla,drop=40`, `:tsla,drop=450steps`,
`:tsla,drop=variance` (or another rule, `smoothing.drop_rule`), `:best_theta`,
and with a teacher's prior `:lsr_pre`, `:tsla_pre` or `:best_theta_pre`. Without
a method it is TSLA with the file's default drop. Set single fields as
`--config.seed=1`. `docs/assumptions.md` says what the papers leave open.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections
from ml_collections.config_dict import placeholder

from tsla_jax.methods import DROP_RULES, Row, apply_method


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of TSLA on digits."""
  c = base()
  apply_method(c, method, drop_epoch=40)
  return c


def unpublished(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
  """Return the rows without published values, for other data."""
  return {
    name: [dataclasses.replace(row, top1=None, top5=None) for row in rows]
    for name, rows in tables.items()
  }


def adaptive_rows(drops: Sequence[int]) -> list[Row]:
  """Return rows with fixed drops, with drop rules and with the best theta."""
  fixed = [f'tsla,drop={epoch}' for epoch in drops]
  rules = [f'tsla,drop={rule}' for rule in DROP_RULES]
  methods = ['baseline', 'lsr', *fixed, *rules, 'best_theta']
  return [Row(method) for method in methods]


def base() -> ml_collections.ConfigDict:
  """Return all fields with values for LSR on digits; other files start here."""
  c = ml_collections.ConfigDict()

  c.seed = 0  # of initialisation, order and augmentation
  c.num_epochs = 60  # may be raised later to continue a finished run
  c.batch_size = 64  # per step, over all devices; a partial batch is dropped
  c.eval_batch_size = placeholder(int)  # None: batch_size; results are equal
  c.num_devices = placeholder(int)  # local devices to use; None: all
  # Compute the same bits at every start on a GPU; a CPU always does. Costs
  # about 5 % of the speed.
  c.deterministic = False

  c.smoothing = ml_collections.ConfigDict()
  # Strength: labels are (1 - theta) y + theta y_hat. Usually within [0, 1];
  # negative smoothing is allowed.
  c.smoothing.theta = 0.1
  # First epoch on one-hot labels, counted from 0; the number of smoothed
  # epochs. None: no drop.
  c.smoothing.drop_epoch = placeholder(int)
  # The drop in steps instead: T_1 of Algorithm 2. 0 is the baseline; the number
  # of all steps is LSR.
  c.smoothing.drop_step = placeholder(int)
  # A rule that finds the drop epoch instead. 'plateau': the training loss minus
  # its floor has stalled. 'variance': smoothing raises the error of the batch's
  # gradient, theta > 2 theta*. 'delta': delta > 1. Extensions of the paper.
  c.smoothing.drop_rule = placeholder(str)
  c.smoothing.patience = 3  # epochs in a row in which the rule must hold
  c.smoothing.tolerance = 0.01  # of 'plateau': least relative progress
  # How theta falls to 0 at the drop: 'two_stage' at once; 'linear' and 'cosine'
  # gradually from the first step on. 'best_theta' (an extension) has no drop:
  # it starts at smoothing.theta, and later epochs use the theta* measured after
  # the previous epoch, whose batch gradient is nearest to that of the loss.
  c.smoothing.schedule = 'two_stage'
  # y_hat: 'uniform', 'class' (the classes' frequencies), or 'teacher'.
  c.smoothing.prior = 'uniform'
  c.smoothing.teacher = placeholder(str)  # table from experiments/teacher.py

  c.loss = ml_collections.ConfigDict()
  # 'cross_entropy' on the smoothed labels, or 'confidence_penalty', which also
  # subtracts `strength` times the entropy of the prediction.
  c.loss.name = 'cross_entropy'
  c.loss.strength = 0.0  # of the penalty

  c.data = ml_collections.ConfigDict()
  # 'digits', 'image_folder', 'features', or a TFDS data set
  c.data.name = 'digits'
  # The directory where a TFDS data set was prepared (or that of its version),
  # the folder with split/class/file, or the file of features.
  c.data.data_dir = placeholder(str)
  c.data.train_split = 'train'  # TFDS slices work: 'train[:90%]'
  c.data.test_split = 'test'  # evaluated after each epoch
  # Small images: crop to a square and resize to this; 0: as they are.
  c.data.image_size = 0
  # Large images: keep the ratio (up to 3:2), resize the shorter side to this,
  # and store the result in a cache; 0: as they are.
  c.data.decode_size = 0
  # Directory of the cache; None: in the user's cache directory.
  c.data.cache_dir = placeholder(str)
  # Side of random-resized crops in training and of the centre crop in
  # evaluation; 0: images as they are, cropped after padding.
  c.data.crop_size = 0
  c.data.crop_scale = (0.08, 1.0)  # share of the area of a random-resized crop
  c.data.crop_ratio = (3 / 4, 4 / 3)  # width over height of that crop
  # Side of the centre crop over the shorter side of the image: 224/256.
  c.data.eval_crop = 0.875
  # Mixup: mix each image and its smoothed label with another example, by a
  # weight drawn from Beta(alpha, alpha); 0: no mixup.
  c.data.mixup_alpha = 0.0
  # Share of training labels that are replaced by wrong ones, the same in every
  # run. Test labels do not change. For experiments on small data.
  c.data.label_noise = 0.0
  # Scale features to zero mean and unit variance over the training examples.
  c.data.standardize = False
  c.data.pad = 1  # zeros around an image before a random crop of its size
  c.data.flip = False  # mirror half of the training images
  c.data.mean = (0.305,)  # of each channel, of values in [0, 1]
  c.data.std = (0.376,)  # of each channel

  c.model = ml_collections.ConfigDict()
  # 'resnet8', 'resnet18', 'resnet34' or 'resnet50'. On features, or on images
  # as vectors: 'linear', or 'mlp' with a hidden layer of ReLU.
  c.model.name = 'resnet8'
  c.model.hidden = 512  # units of an mlp's hidden layer
  c.model.stem = 'cifar'  # 'cifar': 3x3; 'imagenet': 7x7 and max-pooling
  c.model.width = 16  # channels of the first stage; 64 in the paper
  # Initial weights in torchvision's layout: a .safetensors or .pth file, or a
  # Hugging Face id, 'timm/resnet18.tv_in1k'. None: random weights.
  c.model.pretrained = placeholder(str)
  # Type of the convolutions. 'auto': bfloat16, or float32 on a CPU.
  c.model.dtype = 'auto'

  c.optimizer = ml_collections.ConfigDict()
  # 'sgd', 'momentum', 'nesterov', 'adagrad', 'rmsprop', 'adadelta', 'adam',
  # 'nadam', 'amsgrad'
  c.optimizer.name = 'sgd'
  c.optimizer.momentum = 0.9  # of the first three, as defined by PyTorch
  c.optimizer.learning_rate = ml_collections.ConfigDict()
  c.optimizer.learning_rate.backbone = 0.1  # of all layers but the last
  c.optimizer.learning_rate.head = 0.1  # of the last layer, the classifier
  c.optimizer.drop_epochs = (30, 50)  # learning rates drop before these epochs
  c.optimizer.drop_factor = 0.1  # and are multiplied by this
  # Factor of all learning rates from the drop of theta on: eta_2 / eta_1 of
  # Algorithm 2.
  c.optimizer.second_stage_factor = 1.0
  # Reset the optimizer (momentum, second moments) at the drop of theta.
  c.optimizer.reset_at_drop = False
  # Also keep w_R, the output of Algorithms 1 and 2: an iterate drawn uniformly
  # from the last stage. Needs memory for a copy of the parameters. The summary
  # has the accuracy of w_R.
  c.optimizer.sample_iterate = False
  c.optimizer.weight_decay = 5e-4  # on every parameter
  c.optimizer.head_weight_decay = placeholder(float)  # None: as weight_decay
  c.optimizer.decoupled_weight_decay = False  # True: as AdamW; False: L2

  # Measurements beside losses and accuracies.
  c.analysis = ml_collections.ConfigDict()
  # Epochs between measurements of neural collapse on the training set. Each
  # takes one evaluation of the training set. The first epoch is measured too.
  # 0: never.
  c.analysis.neural_collapse_every = 10
  # Epochs between measurements of delta (equation 4) and theta*, the best
  # strength for the batch, from the gradients of the last layer. 0: never.
  # Methods that use them set it to 1.
  c.analysis.gradient_variance_every = 0

  # Intervals between checkpoints. A kill loses at most the work since the last
  # one. The last epoch is always saved; the best epoch is saved with the next
  # checkpoint.
  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every_seconds = 60.0  # also within an epoch; 0: off
  c.checkpoint.every_epochs = 0  # 0: off

  return c.lock()  # from here on a misspelt field is an error
