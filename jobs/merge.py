"""merge: the complete folders of all shards of an input, made one run folder.

python -m jobs merge out/1 out/2 out/3 out/4 --output out/all
"""

from typing import Annotated

from cyclopts import Parameter

from jobs.answer import fail
from jobs.flags import Folder, under
from schemas.errors import Refused


def merge(
    *shards: Annotated[
        Folder, Parameter(help="The run folders of all shards, local or s3://, gs://.", group=under("Input"))
    ],
    output: Annotated[
        Folder, Parameter(help="The run folder of the whole, local or s3://, gs://.", group=under("Output"))
    ],
) -> int:
    """Join the folders of all shards into one that is as if one submission had answered the input; they stay.

    llava-batch caption --input in/ --shard 1/2 --output out/1
    llava-batch caption --input in/ --shard 2/2 --output out/2
    llava-batch merge out/1 out/2 --output out/all
    """
    if not shards:
        raise Refused("merge needs the run folders of all shards, as in llava-batch merge out/1 out/2 --output out/all")
    from jobs.answer import report  # pyarrow takes a second that what is wrong with a flag need not wait for
    from pipeline.join import join_shards
    from pipeline.preflight import check_writable

    try:
        check_writable(output)
        return report(join_shards(shards, output), 1.0)
    except OSError as error:
        return fail(error)
