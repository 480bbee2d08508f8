"""claims carry a token; runs are given back; workers say what troubles them

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kytecron.store.models import UtcDateTime

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

RUN, WORKER = 'CronJobExecution', 'CronWorker'


def upgrade() -> None:
    op.add_column(RUN, sa.Column('release_reason', sa.String(length=500), nullable=True))
    op.add_column(RUN, sa.Column('token', sa.BigInteger(), nullable=True))
    op.add_column(RUN, sa.Column('given_back', sa.Integer(), server_default='0', nullable=False))
    op.add_column(RUN, sa.Column('interruptions', sa.Integer(), server_default='0', nullable=False))
    op.drop_index('ix_CronJobExecution_due', table_name=RUN)
    op.create_index('ix_CronJobExecution_due', RUN, ['status', 'due_time', 'worker_tag'], unique=False)
    op.add_column(WORKER, sa.Column('trouble', sa.String(length=500), nullable=True))
    op.add_column(WORKER, sa.Column('trouble_since', UtcDateTime(), nullable=True))
    op.add_column(WORKER, sa.Column('trouble_jobs', sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    for column in ('trouble_jobs', 'trouble_since', 'trouble'):
        op.drop_column(WORKER, column)
    op.drop_index('ix_CronJobExecution_due', table_name=RUN)
    op.create_index('ix_CronJobExecution_due', RUN, ['status', 'due_time'], unique=False)
    for column in ('interruptions', 'given_back', 'token', 'release_reason'):
        op.drop_column(RUN, column)
