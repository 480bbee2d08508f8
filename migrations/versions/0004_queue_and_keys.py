"""how many slots wait under overlap_policy queue, and answers kept by Idempotency-Key

Revision: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kytecron.store.models import UtcDateTime
from sqlalchemy.dialects import mysql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('CronJob', sa.Column('queue_length', sa.Integer(), server_default='1', nullable=False))
    op.create_table('CronIdempotencyKey',
    sa.Column('key_hash', sa.String(length=64), nullable=False),
    sa.Column('request_hash', sa.String(length=64), nullable=False),
    sa.Column('started_at', UtcDateTime(), nullable=False),
    sa.Column('status', sa.Integer(), nullable=True),
    sa.Column('answer', sa.LargeBinary().with_variant(mysql.LONGBLOB(), 'mysql', 'mariadb'), nullable=True),
    sa.PrimaryKeyConstraint('key_hash', name=op.f('pk_CronIdempotencyKey')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_index(op.f('ix_CronIdempotencyKey_started_at'), 'CronIdempotencyKey', ['started_at'], unique=False)


def downgrade() -> None:
    op.drop_index(op.f('ix_CronIdempotencyKey_started_at'), table_name='CronIdempotencyKey')
    op.drop_table('CronIdempotencyKey')
    op.drop_column('CronJob', 'queue_length')
