"""Streams: files that play while they grow, viewers kept to the clock, and going on later."""

from osp_cli.media.live.pacing import Pacer as Pacer
from osp_cli.media.live.picture import Picture as Picture
from osp_cli.media.live.pieces import count_frames as count_frames
from osp_cli.media.live.pieces import cut_to as cut_to
from osp_cli.media.live.pieces import join as join
from osp_cli.media.live.recording import check_recording as check_recording
from osp_cli.media.live.recording import recorded_frames as recorded_frames
from osp_cli.media.live.recording import recording_path as recording_path
from osp_cli.media.live.recording import take_up as take_up
from osp_cli.media.live.sinks import LiveEvents as LiveEvents
from osp_cli.media.live.sinks import LiveSink as LiveSink
from osp_cli.media.live.sinks import open_live as open_live
from osp_cli.media.live.targets import check_targets as check_targets
from osp_cli.media.live.targets import parse_targets as parse_targets
