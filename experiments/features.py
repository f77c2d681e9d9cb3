"""Writes features of a pretrained backbone, as `tsla-features`; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import features

if __name__ == '__main__':
  features.run()
