"""workers report their own lease and renewal, and are known to be gone once their runs are taken over

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kytecron.store.models import UtcDateTime

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('CronWorker', sa.Column('lease_seconds', sa.Float(), server_default='60', nullable=False))
    op.add_column('CronWorker', sa.Column('renew_seconds', sa.Float(), server_default='10', nullable=False))
    op.add_column('CronWorker', sa.Column('gone_at', UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column('CronWorker', 'gone_at')
    op.drop_column('CronWorker', 'renew_seconds')
    op.drop_column('CronWorker', 'lease_seconds')
