"""rows that stand for many missed slots

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kytecron.store.models import UtcDateTime

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('CronJobExecution', sa.Column('slots_until', UtcDateTime(), nullable=True))
    op.add_column('CronJobExecution', sa.Column('slots_count', sa.Integer(), server_default='1', nullable=False))
    op.create_index('ix_CronJobExecution_slots_until', 'CronJobExecution', ['slots_until'], unique=False, sqlite_where=sa.text('slots_until IS NOT NULL'))


def downgrade() -> None:
    op.drop_index('ix_CronJobExecution_slots_until', table_name='CronJobExecution', sqlite_where=sa.text('slots_until IS NOT NULL'))
    op.drop_column('CronJobExecution', 'slots_count')
    op.drop_column('CronJobExecution', 'slots_until')
