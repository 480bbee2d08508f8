"""how many slots of a job were skipped since one ran

Revision: 0008, after 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('CronJob', sa.Column('skipped_in_a_row', sa.BigInteger(), server_default='0', nullable=False))


def downgrade() -> None:
    op.drop_column('CronJob', 'skipped_in_a_row')
