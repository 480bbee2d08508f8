"""names compare byte by byte on PostgreSQL, with room for rows that change often; no index of when workers reported

Revision: 0009, after 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None

WORKER, SEEN = 'CronWorker', 'ix_CronWorker_last_seen_at'
RUN, UNTIL = 'CronJobExecution', 'ix_CronJobExecution_slots_until'

# Rows that change often find room on their own page, and so need no new entries in the indexes. Dead rows are cleared
# away after a share of the rows that there are, or after a number where there are millions.
OFTEN = 'autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02'
SETTINGS = {
    'CronJob': f'fillfactor = 70, {OFTEN}',
    'CronJobExecution': f'fillfactor = 85, {OFTEN}, autovacuum_vacuum_insert_scale_factor = 0.05',
    'CronJobDailyStat': f'fillfactor = 85, {OFTEN}',
    'CronJobOutput': f'{OFTEN}, autovacuum_vacuum_insert_scale_factor = 0.05',
    'CronOutbox': f'fillfactor = 85, {OFTEN}',
    'CronWorker': f'fillfactor = 50, {OFTEN}',
    'CronSession': 'fillfactor = 85',
    'CronThrottle': f'fillfactor = 50, {OFTEN}',
}


def upgrade() -> None:
    op.drop_index(SEEN, table_name=WORKER)  # there are few workers, and each reports every ten seconds
    if op.get_bind().dialect.name != 'postgresql':
        return
    for table, column, kind in _texts():
        op.execute(sa.text(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE {kind} COLLATE "C"'))
    for table, settings in SETTINGS.items():
        op.execute(sa.text(f'ALTER TABLE "{table}" SET ({settings})'))
    op.drop_index(UNTIL, table_name=RUN)
    op.create_index(UNTIL, RUN, ['slots_until'], unique=False, postgresql_where=sa.text('slots_until IS NOT NULL'))


def downgrade() -> None:
    op.create_index(SEEN, WORKER, ['last_seen_at'], unique=False)
    if op.get_bind().dialect.name != 'postgresql':
        return
    op.drop_index(UNTIL, table_name=RUN)
    op.create_index(UNTIL, RUN, ['slots_until'], unique=False)
    for table, settings in SETTINGS.items():
        names = ', '.join(setting.partition(' = ')[0] for setting in settings.split(', '))
        op.execute(sa.text(f'ALTER TABLE "{table}" RESET ({names})'))
    for table, column, kind in _texts():
        op.execute(sa.text(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE {kind} COLLATE "default"'))


def _texts() -> list[tuple[str, str, str]]:
    """Every column of the tables of 0008 that holds text, and its type."""
    return [
        tuple(row)
        for row in op.get_bind().execute(
            sa.text(
                "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
                "JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = current_schema()::regnamespace "
                "AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attcollation <> 0 "
                "AND (c.relname LIKE 'Cron%' OR c.relname LIKE 'KyteCron%') ORDER BY 1, a.attnum"
            )
        )
    ]
