"""A run on disk: the loop that trains, the folder that it fills, its checkpoints, its lock.

    RUN/config.json                                what was asked for, on what data, with which versions; whose weights
                                                   it began with ("init_from"), which rates, or steps in which
                                                   they fall, changed on the way ("changes")
    RUN/log.jsonl                                  a line of numbers for the first step, every 10th, and those that
                                                   were sampled, measured, or followed a change of rates
    RUN/checkpoints/step-00001000.safetensors      everything needed to go on, and to sample
    RUN/samples/step-00001000.png                  the same latents and classes each time
    RUN/progress.gif  RUN/curves.png               the samples over time; losses, scores, gates of attention
    RUN/evaluation.json  RUN/report.html           what minisagan evaluate measured last; minisagan report's page
    RUN/lock                                       held by the process that trains

RUN/best stands for the checkpoint with the least Frechet distance in the log, among those that are there.
"""
