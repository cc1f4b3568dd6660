"""`muscaling run-series`: grid search, proxies, law and prediction of one experiment."""

from collections.abc import Sequence


def run(arguments: Sequence[str] | None, description: str | None = None) -> None:
    """Run the experiment that the flags describe and print its prediction."""
    from hf_muscaling.configuration import parse_experiment
    from hf_muscaling.experiment import run_experiment
    from hf_muscaling.report import headline

    config, _ = parse_experiment(arguments, description)
    if config.push_to_hub:
        from hf_muscaling.hub.folders import check_login, push_experiment

        check_login(config.push_to_hub)
    result = run_experiment(config)
    if result.is_main_process:
        print(f"\n{headline(result)}\nReport: {config.output_dir}/report.md")
        if config.push_to_hub:
            print(push_experiment(config.output_dir, config.push_to_hub, private=config.hub_private_repo or None))
