"""Makes a teacher's predictions, as `tsla-teacher` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import teacher

if __name__ == '__main__':
  teacher.run()
