"""first schema

Revision: 0001, the first
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kytecron.store.models import UtcDateTime
from sqlalchemy.dialects import mysql

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('CronAudit',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('at', UtcDateTime(), nullable=False),
    sa.Column('actor', sa.String(length=100), nullable=False),
    sa.Column('source', sa.String(length=16), server_default='python', nullable=False),
    sa.Column('ip', sa.String(length=64), server_default='', nullable=False),
    sa.Column('action', sa.String(length=64), nullable=False),
    sa.Column('subject_type', sa.String(length=32), nullable=False),
    sa.Column('subject_id', sa.String(length=64), nullable=False),
    sa.Column('subject_name', sa.String(length=200), server_default='', nullable=False),
    sa.Column('before', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('after', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronAudit')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronAudit', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_CronAudit_at'), ['at'], unique=False)
        batch_op.create_index('ix_CronAudit_subject', ['subject_type', 'subject_id'], unique=False)

    op.create_table('CronJob',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('description', sa.String(length=2000), server_default='', nullable=False),
    sa.Column('tags', sa.String(length=500), server_default='', nullable=False),
    sa.Column('schedule_type', sa.String(length=16), server_default='manual', nullable=False),
    sa.Column('cron_expression', sa.String(length=200), nullable=True),
    sa.Column('interval_seconds', sa.Integer(), nullable=True),
    sa.Column('interval_anchor', sa.String(length=16), server_default='schedule', nullable=False),
    sa.Column('schedule_anchor', UtcDateTime(), nullable=True),
    sa.Column('time_of_day', sa.String(length=8), nullable=True),
    sa.Column('day_of_week', sa.String(length=20), nullable=True),
    sa.Column('day_of_month', sa.Integer(), nullable=True),
    sa.Column('timezone', sa.String(length=64), server_default='UTC', nullable=False),
    sa.Column('starts_at', UtcDateTime(), nullable=True),
    sa.Column('ends_at', UtcDateTime(), nullable=True),
    sa.Column('max_runs', sa.Integer(), nullable=True),
    sa.Column('jitter_seconds', sa.Integer(), server_default='0', nullable=False),
    sa.Column('timeout_seconds', sa.Integer(), server_default='300', nullable=False),
    sa.Column('memory_limit_mb', sa.Integer(), nullable=True),
    sa.Column('cpu_limit_seconds', sa.Integer(), nullable=True),
    sa.Column('parameters', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('priority', sa.Integer(), server_default='5', nullable=False),
    sa.Column('worker_tag', sa.String(length=64), server_default='', nullable=False),
    sa.Column('overlap_policy', sa.String(length=16), server_default='skip', nullable=False),
    sa.Column('misfire_policy', sa.String(length=16), server_default='run_once', nullable=False),
    sa.Column('misfire_grace_seconds', sa.Integer(), server_default='60', nullable=False),
    sa.Column('on_lost_contact', sa.String(length=16), server_default='stop', nullable=False),
    sa.Column('max_retries', sa.Integer(), server_default='3', nullable=False),
    sa.Column('retry_strategy', sa.String(length=16), server_default='exponential', nullable=False),
    sa.Column('retry_delay_seconds', sa.Integer(), server_default='60', nullable=False),
    sa.Column('retry_max_delay_seconds', sa.Integer(), server_default='3600', nullable=False),
    sa.Column('dependency_mode', sa.String(length=16), server_default='gate', nullable=False),
    sa.Column('dependency_timeout_seconds', sa.Integer(), server_default='3600', nullable=False),
    sa.Column('require_fresh', sa.Boolean(), server_default='0', nullable=False),
    sa.Column('notify_on_failure', sa.Boolean(), server_default='1', nullable=False),
    sa.Column('notify_after_failures', sa.Integer(), server_default='1', nullable=False),
    sa.Column('notify_on_dead_letter', sa.Boolean(), server_default='1', nullable=False),
    sa.Column('notify_on_recovery', sa.Boolean(), server_default='1', nullable=False),
    sa.Column('slack_webhook', sa.String(length=500), nullable=True),
    sa.Column('notification_email', sa.String(length=500), nullable=True),
    sa.Column('enabled', sa.Boolean(), server_default='1', nullable=False),
    sa.Column('disabled_reason', sa.String(length=500), nullable=True),
    sa.Column('next_run_time', UtcDateTime(), nullable=True),
    sa.Column('in_dead_letter_queue', sa.Boolean(), server_default='0', nullable=False),
    sa.Column('dead_letter_reason', sa.String(length=2000), nullable=True),
    sa.Column('dead_letter_since', UtcDateTime(), nullable=True),
    sa.Column('consecutive_failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('failing_since', UtcDateTime(), nullable=True),
    sa.Column('runs_scheduled', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('runs_total', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('runs_completed', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('runs_failed', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('runs_timeout', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('duration_total_ms', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('recent_results', sa.String(length=30), server_default='', nullable=False),
    sa.Column('last_execution', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('last_status', sa.String(length=16), nullable=True),
    sa.Column('last_run_at', UtcDateTime(), nullable=True),
    sa.Column('last_success_at', UtcDateTime(), nullable=True),
    sa.Column('last_success_version', sa.Integer(), nullable=True),
    sa.Column('current_version', sa.Integer(), nullable=True),
    sa.Column('state', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('revision', sa.Integer(), server_default='1', nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=True),
    sa.Column('created_by', sa.String(length=100), nullable=True),
    sa.Column('updated_at', UtcDateTime(), nullable=True),
    sa.Column('updated_by', sa.String(length=100), nullable=True),
    sa.Column('deleted_at', UtcDateTime(), nullable=True),
    sa.Column('deleted_id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronJob')),
    sa.UniqueConstraint('name', 'deleted_id', name=op.f('uq_CronJob_name_deleted_id')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronJob', schema=None) as batch_op:
        batch_op.create_index('ix_CronJob_due', ['enabled', 'next_run_time'], unique=False)

    op.create_table('CronJobDailyStat',
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('completed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('failed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('timeout', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lost', sa.Integer(), server_default='0', nullable=False),
    sa.Column('cancelled', sa.Integer(), server_default='0', nullable=False),
    sa.Column('skipped', sa.Integer(), server_default='0', nullable=False),
    sa.Column('duration_ms', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('durations', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('cron_job', 'day', name=op.f('pk_CronJobDailyStat')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronJobDailyStat', schema=None) as batch_op:
        batch_op.create_index('ix_CronJobDailyStat_day', ['day', 'completed', 'failed', 'timeout', 'lost', 'cancelled', 'skipped', 'duration_ms'], unique=False)

    op.create_table('CronJobExecution',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('scheduled_time', UtcDateTime(), nullable=False),
    sa.Column('rerun', sa.Integer(), server_default='0', nullable=False),
    sa.Column('retry_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('is_retry', sa.Boolean(), server_default='0', nullable=False),
    sa.Column('parent_execution', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('origin', sa.String(length=16), server_default='schedule', nullable=False),
    sa.Column('status', sa.String(length=16), server_default='pending', nullable=False),
    sa.Column('due_time', UtcDateTime(), nullable=True),
    sa.Column('queue_time', UtcDateTime(), nullable=True),
    sa.Column('priority', sa.Integer(), server_default='5', nullable=False),
    sa.Column('worker_tag', sa.String(length=64), server_default='', nullable=False),
    sa.Column('waiting_for', sa.String(length=500), nullable=True),
    sa.Column('waiting_until', UtcDateTime(), nullable=True),
    sa.Column('parents_used', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('version', sa.Integer(), nullable=True),
    sa.Column('requested_version', sa.Integer(), nullable=True),
    sa.Column('parameters', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('note', sa.String(length=500), nullable=True),
    sa.Column('triggered_by', sa.String(length=100), nullable=True),
    sa.Column('cancel_reason', sa.String(length=500), nullable=True),
    sa.Column('locked_by', sa.String(length=100), nullable=True),
    sa.Column('locked_at', UtcDateTime(), nullable=True),
    sa.Column('locked_until', UtcDateTime(), nullable=True),
    sa.Column('started_at', UtcDateTime(), nullable=True),
    sa.Column('completed_at', UtcDateTime(), nullable=True),
    sa.Column('duration_ms', sa.BigInteger(), nullable=True),
    sa.Column('cpu_ms', sa.BigInteger(), nullable=True),
    sa.Column('memory_peak_mb', sa.Float(), nullable=True),
    sa.Column('exit_code', sa.Integer(), nullable=True),
    sa.Column('progress_percent', sa.Float(), nullable=True),
    sa.Column('progress_note', sa.String(length=500), nullable=True),
    sa.Column('output', sa.Text().with_variant(mysql.LONGTEXT(), 'mariadb').with_variant(mysql.LONGTEXT(), 'mysql'), nullable=True),
    sa.Column('output_bytes', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('error', sa.String(length=2000), nullable=True),
    sa.Column('stack_trace', sa.Text().with_variant(mysql.LONGTEXT(), 'mariadb').with_variant(mysql.LONGTEXT(), 'mysql'), nullable=True),
    sa.Column('result', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('skipped_reason', sa.String(length=500), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronJobExecution')),
    sa.UniqueConstraint('cron_job', 'scheduled_time', 'rerun', 'retry_count', name='uq_CronJobExecution_slot'),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronJobExecution', schema=None) as batch_op:
        batch_op.create_index('ix_CronJobExecution_due', ['status', 'due_time'], unique=False)
        batch_op.create_index('ix_CronJobExecution_job', ['cron_job'], unique=False)
        batch_op.create_index('ix_CronJobExecution_job_status', ['cron_job', 'status'], unique=False)
        batch_op.create_index('ix_CronJobExecution_queue', ['status', 'worker_tag', 'queue_time'], unique=False)
        batch_op.create_index('ix_CronJobExecution_slots', ['status', 'scheduled_time'], unique=False)

    op.create_table('CronJobOutput',
    sa.Column('execution', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('seq', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('text', sa.Text().with_variant(mysql.LONGTEXT(), 'mariadb').with_variant(mysql.LONGTEXT(), 'mysql'), nullable=False),
    sa.Column('is_tail', sa.Boolean(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('execution', 'seq', name=op.f('pk_CronJobOutput')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_table('CronOutbox',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('cause', sa.String(length=200), nullable=False),
    sa.Column('kind', sa.String(length=32), nullable=False),
    sa.Column('channel', sa.String(length=16), nullable=False),
    sa.Column('target', sa.String(length=500), nullable=False),
    sa.Column('payload', sa.JSON(), nullable=False),
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('execution', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
    sa.Column('status', sa.String(length=16), server_default='pending', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('due_time', UtcDateTime(), nullable=False),
    sa.Column('locked_by', sa.String(length=100), nullable=True),
    sa.Column('last_error', sa.String(length=500), nullable=True),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('sent_at', UtcDateTime(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronOutbox')),
    sa.UniqueConstraint('cause', 'channel', name=op.f('uq_CronOutbox_cause_channel')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronOutbox', schema=None) as batch_op:
        batch_op.create_index('ix_CronOutbox_due', ['status', 'due_time'], unique=False)

    op.create_table('CronSecret',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('name', sa.String(length=100), nullable=False),
    sa.Column('ciphertext', sa.LargeBinary().with_variant(mysql.LONGBLOB(), 'mariadb').with_variant(mysql.LONGBLOB(), 'mysql'), nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('updated_at', UtcDateTime(), nullable=False),
    sa.Column('updated_by', sa.String(length=100), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronSecret')),
    sa.UniqueConstraint('name', name=op.f('uq_CronSecret_name')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_table('CronThrottle',
    sa.Column('key', sa.String(length=200), nullable=False),
    sa.Column('window', UtcDateTime(), nullable=False),
    sa.Column('count', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('key', 'window', name=op.f('pk_CronThrottle')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronThrottle', schema=None) as batch_op:
        batch_op.create_index('ix_CronThrottle_window', ['window'], unique=False)

    op.create_table('CronToken',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('name', sa.String(length=100), nullable=False),
    sa.Column('token_hash', sa.String(length=64), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('kind', sa.String(length=16), server_default='api', nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('created_by', sa.String(length=100), nullable=True),
    sa.Column('expires_at', UtcDateTime(), nullable=True),
    sa.Column('revoked_at', UtcDateTime(), nullable=True),
    sa.Column('last_used_at', UtcDateTime(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronToken')),
    sa.UniqueConstraint('token_hash', name=op.f('uq_CronToken_token_hash')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_table('CronUser',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('username', sa.String(length=100), nullable=False),
    sa.Column('password_hash', sa.String(length=255), nullable=True),
    sa.Column('role', sa.String(length=16), server_default='viewer', nullable=False),
    sa.Column('enabled', sa.Boolean(), server_default='1', nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('last_login_at', UtcDateTime(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_CronUser')),
    sa.UniqueConstraint('username', name=op.f('uq_CronUser_username')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_table('CronWorker',
    sa.Column('worker_id', sa.String(length=100), nullable=False),
    sa.Column('host', sa.String(length=255), nullable=False),
    sa.Column('boot_id', sa.String(length=64), nullable=False),
    sa.Column('pid', sa.Integer(), nullable=False),
    sa.Column('process_started', sa.String(length=32), nullable=False),
    sa.Column('version', sa.String(length=32), nullable=False),
    sa.Column('tags', sa.String(length=500), server_default='', nullable=False),
    sa.Column('slots', sa.Integer(), server_default='1', nullable=False),
    sa.Column('running', sa.Integer(), server_default='0', nullable=False),
    sa.Column('clock_skew_ms', sa.Float(), server_default='0', nullable=False),
    sa.Column('tzdata', sa.String(length=32), server_default='', nullable=False),
    sa.Column('draining', sa.Boolean(), server_default='0', nullable=False),
    sa.Column('started_at', UtcDateTime(), nullable=False),
    sa.Column('last_seen_at', UtcDateTime(), nullable=False),
    sa.Column('stopped_at', UtcDateTime(), nullable=True),
    sa.Column('statistics', sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint('worker_id', name=op.f('pk_CronWorker')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronWorker', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_CronWorker_last_seen_at'), ['last_seen_at'], unique=False)

    op.create_table('KyteCronJobVersionContent',
    sa.Column('content_hash', sa.String(length=64), nullable=False),
    sa.Column('code', sa.LargeBinary().with_variant(mysql.LONGBLOB(), 'mariadb').with_variant(mysql.LONGBLOB(), 'mysql'), nullable=False),
    sa.Column('size_bytes', sa.Integer(), server_default='0', nullable=False),
    sa.Column('compressed_bytes', sa.Integer(), server_default='0', nullable=False),
    sa.Column('reference_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=True),
    sa.PrimaryKeyConstraint('content_hash', name=op.f('pk_KyteCronJobVersionContent')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('KyteCronJobVersionContent', schema=None) as batch_op:
        batch_op.create_index('ix_KyteCronJobVersionContent_references', ['reference_count'], unique=False)

    op.create_table('CronJobDependency',
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('parent', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.ForeignKeyConstraint(['cron_job'], ['CronJob.id'], name=op.f('fk_CronJobDependency_cron_job')),
    sa.ForeignKeyConstraint(['parent'], ['CronJob.id'], name=op.f('fk_CronJobDependency_parent')),
    sa.PrimaryKeyConstraint('cron_job', 'parent', name=op.f('pk_CronJobDependency')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronJobDependency', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_CronJobDependency_parent'), ['parent'], unique=False)

    op.create_table('CronJobSecret',
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.Column('secret', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=False, nullable=False),
    sa.ForeignKeyConstraint(['cron_job'], ['CronJob.id'], name=op.f('fk_CronJobSecret_cron_job')),
    sa.ForeignKeyConstraint(['secret'], ['CronSecret.id'], name=op.f('fk_CronJobSecret_secret')),
    sa.PrimaryKeyConstraint('cron_job', 'secret', name=op.f('pk_CronJobSecret')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    op.create_table('CronSession',
    sa.Column('token_hash', sa.String(length=64), nullable=False),
    sa.Column('user', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('last_seen_at', UtcDateTime(), nullable=False),
    sa.Column('expires_at', UtcDateTime(), nullable=False),
    sa.Column('ip', sa.String(length=64), server_default='', nullable=False),
    sa.Column('user_agent', sa.String(length=255), server_default='', nullable=False),
    sa.ForeignKeyConstraint(['user'], ['CronUser.id'], name=op.f('fk_CronSession_user')),
    sa.PrimaryKeyConstraint('token_hash', name=op.f('pk_CronSession')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('CronSession', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_CronSession_expires_at'), ['expires_at'], unique=False)
        batch_op.create_index(batch_op.f('ix_CronSession_user'), ['user'], unique=False)

    op.create_table('KyteCronJobVersion',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('cron_job', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False),
    sa.Column('version_number', sa.Integer(), nullable=False),
    sa.Column('content_hash', sa.String(length=64), nullable=False),
    sa.Column('is_current', sa.Boolean(), server_default='0', nullable=False),
    sa.Column('message', sa.String(length=500), server_default='', nullable=False),
    sa.Column('changes_from_previous', sa.Text().with_variant(mysql.LONGTEXT(), 'mariadb').with_variant(mysql.LONGTEXT(), 'mysql'), nullable=True),
    sa.Column('lines_added', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lines_removed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lines_changed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lines_before', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lines_after', sa.Integer(), server_default='0', nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=True),
    sa.Column('created_by', sa.String(length=100), nullable=True),
    sa.ForeignKeyConstraint(['content_hash'], ['KyteCronJobVersionContent.content_hash'], name=op.f('fk_KyteCronJobVersion_content_hash')),
    sa.ForeignKeyConstraint(['cron_job'], ['CronJob.id'], name=op.f('fk_KyteCronJobVersion_cron_job')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_KyteCronJobVersion')),
    sa.UniqueConstraint('cron_job', 'version_number', name=op.f('uq_KyteCronJobVersion_cron_job_version_number')),
    mysql_charset='utf8mb4',
    mysql_collate='utf8mb4_bin',
    mysql_engine='InnoDB'
    )
    with op.batch_alter_table('KyteCronJobVersion', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_KyteCronJobVersion_content_hash'), ['content_hash'], unique=False)



def downgrade() -> None:
    with op.batch_alter_table('KyteCronJobVersion', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_KyteCronJobVersion_content_hash'))

    op.drop_table('KyteCronJobVersion')
    with op.batch_alter_table('CronSession', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_CronSession_user'))
        batch_op.drop_index(batch_op.f('ix_CronSession_expires_at'))

    op.drop_table('CronSession')
    op.drop_table('CronJobSecret')
    with op.batch_alter_table('CronJobDependency', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_CronJobDependency_parent'))

    op.drop_table('CronJobDependency')
    with op.batch_alter_table('KyteCronJobVersionContent', schema=None) as batch_op:
        batch_op.drop_index('ix_KyteCronJobVersionContent_references')

    op.drop_table('KyteCronJobVersionContent')
    with op.batch_alter_table('CronWorker', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_CronWorker_last_seen_at'))

    op.drop_table('CronWorker')
    op.drop_table('CronUser')
    op.drop_table('CronToken')
    with op.batch_alter_table('CronThrottle', schema=None) as batch_op:
        batch_op.drop_index('ix_CronThrottle_window')

    op.drop_table('CronThrottle')
    op.drop_table('CronSecret')
    with op.batch_alter_table('CronOutbox', schema=None) as batch_op:
        batch_op.drop_index('ix_CronOutbox_due')

    op.drop_table('CronOutbox')
    op.drop_table('CronJobOutput')
    with op.batch_alter_table('CronJobExecution', schema=None) as batch_op:
        batch_op.drop_index('ix_CronJobExecution_slots')
        batch_op.drop_index('ix_CronJobExecution_queue')
        batch_op.drop_index('ix_CronJobExecution_job_status')
        batch_op.drop_index('ix_CronJobExecution_job')
        batch_op.drop_index('ix_CronJobExecution_due')

    op.drop_table('CronJobExecution')
    with op.batch_alter_table('CronJobDailyStat', schema=None) as batch_op:
        batch_op.drop_index('ix_CronJobDailyStat_day')

    op.drop_table('CronJobDailyStat')
    with op.batch_alter_table('CronJob', schema=None) as batch_op:
        batch_op.drop_index('ix_CronJob_due')

    op.drop_table('CronJob')
    with op.batch_alter_table('CronAudit', schema=None) as batch_op:
        batch_op.drop_index('ix_CronAudit_subject')
        batch_op.drop_index(batch_op.f('ix_CronAudit_at'))

    op.drop_table('CronAudit')
