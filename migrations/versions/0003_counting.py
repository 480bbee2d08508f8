"""figures count chains: failures that a retry followed, recovered chains and skipped slots stand beside attempts

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

JOB, STAT, DAY_INDEX = 'CronJob', 'CronJobDailyStat', 'ix_CronJobDailyStat_day'
SUMMED = ['day', 'completed', 'failed', 'timeout', 'lost', 'cancelled', 'skipped', 'duration_ms']
JOB_COUNTS = ('retried_failed', 'retried_timeout', 'runs_recovered', 'runs_skipped')
DAY_COUNTS = ('retried_failed', 'retried_timeout', 'retried_lost', 'recovered')
EDGES = ('duration_min_ms', 'duration_max_ms')


def upgrade() -> None:
    for name in JOB_COUNTS:
        op.add_column(JOB, sa.Column(name, sa.BigInteger(), server_default='0', nullable=False))
    op.add_column(JOB, sa.Column('chains_counted', sa.Boolean(), server_default='0', nullable=False))
    for name in DAY_COUNTS:
        op.add_column(STAT, sa.Column(name, sa.Integer(), server_default='0', nullable=False))
    for name in EDGES:
        op.add_column(STAT, sa.Column(name, sa.BigInteger(), nullable=True))
    op.drop_index(DAY_INDEX, table_name=STAT)
    op.create_index(DAY_INDEX, STAT, [*SUMMED, *DAY_COUNTS], unique=False)


def downgrade() -> None:
    op.drop_index(DAY_INDEX, table_name=STAT)
    op.create_index(DAY_INDEX, STAT, SUMMED, unique=False)
    for name in (*EDGES, *DAY_COUNTS):
        op.drop_column(STAT, name)
    for name in ('chains_counted', *JOB_COUNTS):
        op.drop_column(JOB, name)
