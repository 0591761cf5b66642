"""Makes the report: `python -m pixel_llm.evaluation.report --help`."""

import argparse
from collections.abc import Sequence
import datetime
import pathlib
import sys

from pixel_llm.evaluation.report import credits as credits_lib
from pixel_llm.evaluation.report import page as page_lib
from pixel_llm.evaluation.report import pictures
from pixel_llm.evaluation.report import runs as runs_lib
from pixel_llm.evaluation.report import samples


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
      prog='python -m pixel_llm.evaluation.report',
      description='Writes one HTML file about one or more runs.',
  )
  parser.add_argument(
      '--model_dir',
      action='append',
      required=True,
      help='folder of a run; may be given several times',
  )
  parser.add_argument(
      '--image_dir',
      action='append',
      default=[],
      help='folder with pictures by file name; may be given several times',
  )
  parser.add_argument('--output', required=True, help='the HTML file to write')
  parser.add_argument('--title', default='PixelLLM report')
  parser.add_argument(
      '--order', default='worst', choices=samples.ORDERS, help='of the samples'
  )
  parser.add_argument(
      '--max_samples', type=int, default=24, help='of each task of a run'
  )
  parser.add_argument(
      '--credits',
      action='append',
      type=pathlib.Path,
      help=f'table of picture origins; default: {credits_lib.FILE_NAME} in the'
      ' picture folders or up to two folders above them',
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Command line."""
  args = parse_arguments(argv)
  runs = [runs_lib.load_run(folder) for folder in args.model_dir]
  store = pictures.PictureStore(args.image_dir)
  tables = args.credits or credits_lib.find_tables(args.image_dir)
  now = datetime.datetime.now(datetime.UTC)
  names = ', '.join(run.name for run in runs)
  text = page_lib.page(
      title=args.title,
      subtitle=f'{names}, written on {now:%Y-%m-%d at %H:%M} UTC',
      runs=runs,
      store=store,
      credits=credits_lib.read_credits(tables),
      order=args.order,
      limit=args.max_samples,
  )
  output = pathlib.Path(args.output)
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_text(text, encoding='utf-8')
  print(
      f'{output}: {len(runs)} runs, {len(store.used)} pictures,'
      f' {len(store.missing)} missing'
  )


if __name__ == '__main__':
  main(sys.argv[1:])
