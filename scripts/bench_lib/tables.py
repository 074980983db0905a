"""Numbers as rows of Markdown."""
import statistics


def head(*columns):
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def median(values):
    return statistics.median(values) if values else None


def spread(values, digits=2):
    """Median (smallest to largest), or a dash where nothing was measured."""
    if not values:
        return "-"
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def middle(values, digits=2):
    return f"{median(values):.{digits}f}" if values else "-"


def column(samples, key):
    return [sample[key] for sample in samples]
