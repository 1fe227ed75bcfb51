"""`nvlm-eval score` and `nvlm-eval metrics`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("metric")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--by", metavar="FIELD", help="Scores by the values of a field, too, for example type.")
def score(metric: str, file: Path, by: str | None) -> None:
    """Score saved predictions.

    METRIC is one of `nvlm-eval metrics`. FILE has one JSON object a line: a prediction, a list of
    references, and what else the metric reads. Prints JSON with the mean score, 0 to 1.
    """
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.eval.metrics import find_metric
    from nvlm_deploy.eval.scoring import score_file

    print_json(score_file(find_metric(metric), file, by).to_dict())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def metrics(as_json: bool) -> None:
    """List the metrics, with the fields that they read."""
    from nvlm_deploy.cli.output import print_json, print_table
    from nvlm_deploy.eval.metrics import METRICS

    if as_json:
        print_json(
            {
                metric.name: {
                    "metric": metric.line,
                    "fields": {field.name: field.meaning for field in metric.fields},
                }
                for metric in METRICS.values()
            }
        )
        return
    rows = [("metric", "", "fields besides prediction and references")]
    for metric in METRICS.values():
        rows.append((metric.name, metric.line, ", ".join(field.name for field in metric.fields)))
    print_table(rows)
