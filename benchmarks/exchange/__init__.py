"""Exchange, measured: accuracy against bytes, clients a second beside Flower's simulation, ten thousand clients.

python -m benchmarks.exchange proof --minutes 60     runs of sentence tasks; goes on where it stopped
python -m benchmarks.exchange clients --flower PYTHON    beside Flower's simulation, in an environment with it and Ray
python -m benchmarks.exchange many                   1,000 and 10,000 clients
python -m benchmarks.exchange killed --flower PYTHON     30 rounds of real processes, a third of which is killed
python -m benchmarks.exchange table                  docs/exchange.md, from docs/results
"""
