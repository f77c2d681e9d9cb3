"""Every field of a run, with what it means; other files change a few.

A config is chosen with a method: `--config=configs/digits.py:baseline`, `:lsr`,
`:tsla`, `:tsla,drop=40`, `:tsla,drop=450steps`, `:tsla,drop=variance` (or
another rule, `smoothing.drop_rule`), `:best_theta`, and with a teacher's prior
`:lsr_pre`, `:tsla_pre` or `:best_theta_pre`; without one it is the file's own
TSLA. Single fields follow as `--config.seed=1`.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections
from ml_collections.config_dict import placeholder

from tsla_jax.methods import DROP_RULES, Row, apply_method


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """TSLA on digits."""
  c = base()
  apply_method(c, method, drop_epoch=40)
  return c


def unpublished(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
  """The same rows for other data, of which nothing is published."""
  return {
    name: [dataclasses.replace(row, top1=None, top5=None) for row in rows]
    for name, rows in tables.items()
  }


def adaptive_rows(drops: Sequence[int]) -> list[Row]:
  """Rows whose theta follows what is measured, beside fixed drops."""
  fixed = [f'tsla,drop={epoch}' for epoch in drops]
  rules = [f'tsla,drop={rule}' for rule in DROP_RULES]
  methods = ['baseline', 'lsr', *fixed, *rules, 'best_theta']
  return [Row(method) for method in methods]


def base() -> ml_collections.ConfigDict:
  """All fields, with the values for digits and LSR. Other files start here."""
  c = ml_collections.ConfigDict()

  c.seed = 0  # root of everything random: initialisation, order, augmentation
  c.num_epochs = 60  # may be raised later to go on with a finished run
  c.batch_size = 64  # of a step, over all devices; a partial batch is dropped
  c.eval_batch_size = placeholder(int)  # None: as batch_size; any size is exact
  c.num_devices = placeholder(int)  # local devices to use; None: all
  # Ask a GPU for the same bits at every start (a CPU gives them anyway). Costs
  # about 5 % of the speed.
  c.deterministic = False

  c.smoothing = ml_collections.ConfigDict()
  # Strength: labels are (1 - theta) y + theta y_hat. Usually within [0, 1];
  # negative smoothing is allowed.
  c.smoothing.theta = 0.1
  # First epoch on one-hot labels (from 0), so as many epochs are smoothed.
  # None: theta stays.
  c.smoothing.drop_epoch = placeholder(int)
  # The drop in steps instead: T_1 of Algorithm 2. 0 is the baseline, all steps
  # are LSR.
  c.smoothing.drop_step = placeholder(int)
  # A rule that finds the drop epoch instead. 'plateau': the training loss above
  # its floor has stalled. 'variance': smoothing raises the error of the batch's
  # gradient, theta > 2 theta*. 'delta': delta > 1. Extensions of the paper.
  c.smoothing.drop_rule = placeholder(str)
  c.smoothing.patience = 3  # epochs that the rule must hold before it fires
  c.smoothing.tolerance = 0.01  # of 'plateau': least relative progress
  # How theta comes to 0 at the drop: 'two_stage' at once, or all the way from
  # the start along a 'linear' or 'cosine' ramp. 'best_theta' (an extension):
  # smoothing.theta in the first epoch, then the theta* of the epoch before,
  # which brings the batch's gradient nearest to that of the loss.
  c.smoothing.schedule = 'two_stage'
  # y_hat: 'uniform', 'class' (the classes' frequencies), or 'teacher'.
  c.smoothing.prior = 'uniform'
  c.smoothing.teacher = placeholder(str)  # table from experiments/teacher.py

  c.loss = ml_collections.ConfigDict()
  # On the smoothed labels: 'cross_entropy', or 'confidence_penalty', which
  # subtracts `strength` times the entropy of the prediction.
  c.loss.name = 'cross_entropy'
  c.loss.strength = 0.0  # of the penalty

  c.data = ml_collections.ConfigDict()
  # 'digits', 'image_folder', 'features', or a TFDS data set
  c.data.name = 'digits'
  # Where a TFDS data set was prepared (or the directory of its version), or the
  # folder with split/class/file, or the file of features.
  c.data.data_dir = placeholder(str)
  c.data.train_split = 'train'  # TFDS slices work: 'train[:90%]'
  c.data.test_split = 'test'  # what is evaluated after each epoch
  # Small images: crop to a square and resize to this; 0: as they are.
  c.data.image_size = 0
  # Large images: keep the ratio (up to 3:2) and bring the shorter side to this,
  # once, into a cache; 0: as they are.
  c.data.decode_size = 0
  # Where decoded sets are kept; None: in the user's cache directory.
  c.data.cache_dir = placeholder(str)
  # Side of random-resized crops in training and of the centre crop in
  # evaluation; 0: images as they are, cropped after padding.
  c.data.crop_size = 0
  c.data.crop_scale = (0.08, 1.0)  # share of the area of a random-resized crop
  c.data.crop_ratio = (3 / 4, 4 / 3)  # its width over its height
  # Side of the centre crop over the shorter side of the image: 224/256.
  c.data.eval_crop = 0.875
  # Mix each image, and its smoothed label, with another one's by a weight drawn
  # from Beta(alpha, alpha) (mixup); 0: not at all.
  c.data.mixup_alpha = 0.0
  # Share of the training labels that are made wrong, always the same ones; test
  # labels stay. For experiments on small data; 0: none.
  c.data.label_noise = 0.0
  # Features to zero mean and unit variance over the training examples.
  c.data.standardize = False
  c.data.pad = 1  # zeros around an image before a random crop of its size
  c.data.flip = False  # mirror half of the training images
  c.data.mean = (0.305,)  # of each channel, of values in [0, 1]
  c.data.std = (0.376,)  # likewise

  c.model = ml_collections.ConfigDict()
  # 'resnet8', 'resnet18', 'resnet34', 'resnet50'; on features, or images taken
  # as vectors, 'linear', or 'mlp' with a hidden layer of ReLU.
  c.model.name = 'resnet8'
  c.model.hidden = 512  # units of an mlp's hidden layer
  c.model.stem = 'cifar'  # 'cifar': 3x3; 'imagenet': 7x7 and max-pooling
  c.model.width = 16  # channels of the first stage; 64 in the paper
  # Weights to start from, in torchvision's layout: a .safetensors or .pth file,
  # or a Hugging Face id, 'timm/resnet18.tv_in1k'. None: random ones.
  c.model.pretrained = placeholder(str)
  # Of the convolutions. 'auto': bfloat16, or float32 on a CPU.
  c.model.dtype = 'auto'

  c.optimizer = ml_collections.ConfigDict()
  # 'sgd', 'momentum', 'nesterov', 'adagrad', 'rmsprop', 'adadelta', 'adam',
  # 'nadam', 'amsgrad'
  c.optimizer.name = 'sgd'
  c.optimizer.momentum = 0.9  # of the first three, as PyTorch counts it
  c.optimizer.learning_rate = ml_collections.ConfigDict()
  c.optimizer.learning_rate.backbone = 0.1  # of all but the classifier
  c.optimizer.learning_rate.head = 0.1  # of the classifier
  c.optimizer.drop_epochs = (30, 50)  # learning rates drop before these epochs
  c.optimizer.drop_factor = 0.1  # to this times what they were
  # Learning rates from the drop of theta on, relative to what they would be:
  # eta_2 / eta_1 of Algorithm 2.
  c.optimizer.second_stage_factor = 1.0
  # Start the optimizer (momentum, second moments) anew at the drop. The paper
  # does not say; kept by default.
  c.optimizer.reset_at_drop = False
  # Also keep w_R, the output of Algorithms 1 and 2: an iterate drawn uniformly
  # from the last stage. Takes a copy of the parameters; the summary has its
  # accuracy.
  c.optimizer.sample_iterate = False
  c.optimizer.weight_decay = 5e-4  # on every parameter
  c.optimizer.head_weight_decay = placeholder(float)  # None: as weight_decay
  c.optimizer.decoupled_weight_decay = False  # as AdamW; else L2

  # What is measured beside losses and accuracies.
  c.analysis = ml_collections.ConfigDict()
  # Epochs between measurements of neural collapse on the training set, each of
  # which takes as long as an evaluation of it; the first epoch is measured too.
  # 0: never.
  c.analysis.neural_collapse_every = 10
  # Epochs between measurements of the variance of the last layer's gradients:
  # delta (equation 4), and theta*, the best strength for the batch. 0: never; 1
  # for methods that read it.
  c.analysis.gradient_variance_every = 0

  # What a kill can lose at most: whichever interval is over first. The last
  # epoch is always saved, the best epoch so far with the next save.
  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every_seconds = 60.0  # also within an epoch; 0: not by time
  c.checkpoint.every_epochs = 0  # 0: not by epochs

  return c.lock()  # a misspelt field is an error from here on
