"""The harness takes the first of equal options for the chosen one; here they share the point."""

from flexqwen.evaluation.metrics.minimal_pair_accuracy.minimal_pair_accuracy import credit


def process_results(doc, results):
    return {"acc": credit([nats for nats, _ in results])[0]}
