"""which days count attempts, and of which days runs were removed

Revision: 0005, after 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

JOB = 'CronJob'


def upgrade() -> None:
    op.add_column(JOB, sa.Column('attempts_until', sa.Date(), nullable=True))
    op.add_column(JOB, sa.Column('pruned_until', sa.Date(), nullable=True))
    # Recounted once more, which finds out the first of the two.
    op.execute(sa.table(JOB, sa.column('chains_counted', sa.Boolean())).update().values(chains_counted=False))


def downgrade() -> None:
    op.drop_column(JOB, 'pruned_until')
    op.drop_column(JOB, 'attempts_until')
