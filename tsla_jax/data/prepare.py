"""Prepare TFDS data sets as array_record; only this file uses TensorFlow."""

import importlib.util
import os
import pathlib
import shutil
from typing import Any

from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory, to_path


def prepare(
  name: str,
  data_dir: str | os.PathLike[str],
  archives: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
  """Prepare a data set from archives, which are downloaded if not given.

  Args:
    name: the name of the data set in TFDS, as 'cifar100'.
    data_dir: the directory to write to; `data.data_dir` of a config.
    archives: a directory with the original archives, with their names in TFDS;
      None to download them into `data_dir`.

  Returns:
    The directory of the prepared version.

  Raises:
    InputError: if TensorFlow or an archive is missing, an archive is not the
      one that TFDS expects, or another process prepares the same data set. No
      partial data set is left.
  """
  if importlib.util.find_spec('tensorflow') is None:
    raise InputError(
      'preparing data sets needs TensorFlow, training does not: pip install'
      " -e '.[prepare]'"
    )
  import tensorflow_datasets as tfds

  root = to_path(data_dir)
  builder = _find_builder(name, root)
  final = pathlib.Path(builder.data_path)
  if (final / 'dataset_info.json').is_file():
    if builder.info.file_format.value != 'array_record':
      raise InputError(
        f"'{final}' holds '{name}' as {builder.info.file_format.value}, and"
        ' training reads array_record; give another --data_dir'
      )
    print(f'Prepared before: {final}')
    return final
  infos = (builder.url_infos or {}).values()
  needed = {info.filename: int(info.size) for info in infos if info.filename}
  folder = None
  if archives is not None:
    folder = to_path(archives)
    _check_archives(name, folder, needed)
  # A killed process leaves this folder, and the next one uses it.
  version = builder.info.full_name.replace('/', '-')
  scratch = root / f'.tsla_jax-prepare-{version}'
  unpacked = scratch / 'unpacked'
  try:
    # TFDS may leave the parent empty.
    with lock_directory(
      scratch, final.parent, name='--data_dir: scratch folder'
    ):
      try:
        shutil.rmtree(unpacked, ignore_errors=True)
        # Keep downloads, so that the next try does not repeat them.
        builder.download_and_prepare(
          download_dir=str(unpacked if archives else root / 'downloads'),
          download_config=tfds.download.DownloadConfig(
            manual_dir=folder and str(folder),
            try_download_gcs=False,
          ),
        )
      finally:
        shutil.rmtree(scratch, ignore_errors=True)
  except InputError:
    raise
  # TFDS and what it calls raise errors of many kinds.
  except Exception as error:
    what = f"'{name}' cannot be prepared in '{root}'"
    raise _failed(name, what, error, needed, archives is None) from error
  return final


def _find_builder(name: str, root: pathlib.Path) -> Any:
  """Return the TFDS builder of a data set."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(
      name, data_dir=str(root), file_format='array_record', try_gcs=False
    )
  # Unknown names, versions and configs raise different errors.
  except Exception as error:
    raise InputError(
      f"--dataset: TFDS has no '{name}' ({type(error).__name__}); the paper's"
      ' are cifar100, stanford_dogs and caltech_birds2011'
    ) from error


def _failed(
  name: str,
  what: str,
  error: Exception,
  needed: dict[str, int],
  downloads: bool,
) -> InputError:
  """Return the error to raise for an error of TFDS."""
  reason, listed = ' '.join(str(error).split())[:200], _describe(needed)
  if type(error).__name__ == 'NonMatchingChecksumError':
    return InputError(
      f"an archive of '{name}' is not the original ({reason}); get it again:"
      f' {listed}'
    )
  mend = 'check the archives'
  if downloads:
    mend = f'get {listed} elsewhere and give their folder as --archives'
  return InputError(f'{what} ({reason or repr(error)}); {mend}')


def _describe(needed: dict[str, int]) -> str:
  """List files with their sizes."""
  return ', '.join(
    f'{file} ({size / 1e6:,.0f} MB)' for file, size in sorted(needed.items())
  )


def _check_archives(
  name: str, folder: pathlib.Path, needed: dict[str, int]
) -> None:
  """Check that a folder has all archives with their original sizes."""
  if not folder.is_dir():
    raise InputError(f"--archives: '{folder}' is not a directory")
  missing = [file for file in needed if not (folder / file).is_file()]
  if missing:
    raise InputError(
      f"--archives: '{folder}' lacks {', '.join(sorted(missing))}; '{name}' is"
      f' made from {_describe(needed)}'
    )
  for file, size in needed.items():
    found = (folder / file).stat().st_size
    if found != size:
      raise InputError(
        f"--archives: '{folder / file}' has {found} bytes, the original {size};"
        ' it is cut short or another file, get it again'
      )
