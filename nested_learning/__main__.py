"`python -m nested_learning` is `nl-run`; `torchrun -m nested_learning` runs it on several processes."

from nested_learning.runs.commands import run_one

if __name__ == '__main__':
    run_one(prog_name='nl-run')
