"""The harness takes the first of equal options for the chosen one; here they share the point."""

from flexqwen.evaluation.metrics.choice_accuracy.choice_accuracy import score_choice


def process_results(doc, results):
    return {"acc": score_choice([nats for nats, _ in results])[0]}
