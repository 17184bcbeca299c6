from collections import Counter


def majority_accuracy(task):
    m = Counter(e.label for e in task.train).most_common(1)[0][0]
    return sum(e.label == m for e in task.test) / len(task.test)


def naive_bayes_accuracy(task):
    return None


def wilson_interval(k, n, z=1.959964):
    p = k / n
    c = (p + z * z / 2 / n) / (1 + z * z / n)
    h = z / (1 + z * z / n) * ((p * (1 - p) / n + z * z / 4 / n / n) ** 0.5)
    return c - h, c + h
